from .configuration import MMaDAParallelConfig
from .modeling import MMaDAParallelForMaskedDiffusion
from .policy import MMaDAParallelPolicy


__all__ = ["MMaDAParallelConfig", "MMaDAParallelForMaskedDiffusion", "MMaDAParallelPolicy"]
