from .modeling import DiffusionGemmaForMaskedDiffusion
from .policy import DiffusionGemmaPolicy
from .prefix import PrefixKeys


__all__ = ["DiffusionGemmaForMaskedDiffusion", "DiffusionGemmaPolicy", "PrefixKeys"]
