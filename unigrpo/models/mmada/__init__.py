from ..processing import MMaDAProcessor
from .configuration import MMaDAConfig
from .modeling import MMaDAForMaskedDiffusion
from .policy import MMaDAPolicy


__all__ = ["MMaDAConfig", "MMaDAForMaskedDiffusion", "MMaDAPolicy", "MMaDAProcessor"]
