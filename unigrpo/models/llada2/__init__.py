from .configuration import LLaDA2MoeConfig
from .modeling import LLaDA2MoeForMaskedDiffusion
from .policy import LLaDA2MoePolicy


__all__ = ["LLaDA2MoeConfig", "LLaDA2MoeForMaskedDiffusion", "LLaDA2MoePolicy"]
