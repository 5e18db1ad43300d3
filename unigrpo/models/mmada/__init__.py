from .configuration import MMaDAConfig
from .modeling import MMaDAForMaskedDiffusion
from .policy import MMaDAPolicy
from .processing import MMaDAProcessor


__all__ = ["MMaDAConfig", "MMaDAForMaskedDiffusion", "MMaDAPolicy", "MMaDAProcessor"]
