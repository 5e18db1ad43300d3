from .configuration import LuminaConfig
from .modeling import LuminaForMaskedDiffusion
from .parallel_a import MMaDAParallelAConfig, MMaDAParallelAForMaskedDiffusion, MMaDAParallelAPolicy
from .policy import LuminaPolicy
from .processing import LuminaProcessor


__all__ = [
    "LuminaConfig",
    "LuminaForMaskedDiffusion",
    "LuminaPolicy",
    "LuminaProcessor",
    "MMaDAParallelAConfig",
    "MMaDAParallelAForMaskedDiffusion",
    "MMaDAParallelAPolicy",
]
