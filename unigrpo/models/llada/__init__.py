from .configuration import LLaDAConfig
from .modeling import LLaDAForMaskedDiffusion
from .policy import LLaDAPolicy


__all__ = ["LLaDAConfig", "LLaDAForMaskedDiffusion", "LLaDAPolicy"]
