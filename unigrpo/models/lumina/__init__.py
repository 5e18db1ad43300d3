from .configuration import LuminaConfig
from .modeling import LuminaForMaskedDiffusion
from .policy import LuminaPolicy
from .processing import LuminaProcessor


__all__ = ["LuminaConfig", "LuminaForMaskedDiffusion", "LuminaPolicy", "LuminaProcessor"]
