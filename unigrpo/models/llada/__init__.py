from .configuration import LLaDAConfig
from .modeling import LLaDAForMaskedDiffusion


__all__ = ["LLaDAConfig", "LLaDAForMaskedDiffusion"]
