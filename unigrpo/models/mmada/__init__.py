from ..processing import MMaDAProcessor
from .configuration import MMaDAConfig
from .modeling import MMaDAForMaskedDiffusion
from .parallel_m import MMaDAParallelMConfig, MMaDAParallelMForMaskedDiffusion, MMaDAParallelMPolicy
from .policy import MMaDAPolicy


__all__ = [
    "MMaDAConfig",
    "MMaDAForMaskedDiffusion",
    "MMaDAParallelMConfig",
    "MMaDAParallelMForMaskedDiffusion",
    "MMaDAParallelMPolicy",
    "MMaDAPolicy",
    "MMaDAProcessor",
]
