from .configuration import A2DLlamaConfig, A2DQwen2Config, A2DQwen3Config, DreamConfig
from .modeling import (
    A2DLlamaForMaskedDiffusion,
    A2DQwen2ForMaskedDiffusion,
    A2DQwen3ForMaskedDiffusion,
    DreamForMaskedDiffusion,
    MaskedDecoder,
)
from .policy import A2DLlamaPolicy, A2DQwen2Policy, A2DQwen3Policy, DecoderPolicy, DreamPolicy
from .processing import DecoderProcessor
from .sdar import SDARConfig, SDARForMaskedDiffusion, SDARPolicy


__all__ = [
    "A2DLlamaConfig",
    "A2DLlamaForMaskedDiffusion",
    "A2DLlamaPolicy",
    "A2DQwen2Config",
    "A2DQwen2ForMaskedDiffusion",
    "A2DQwen2Policy",
    "A2DQwen3Config",
    "A2DQwen3ForMaskedDiffusion",
    "A2DQwen3Policy",
    "DecoderPolicy",
    "DecoderProcessor",
    "DreamConfig",
    "DreamForMaskedDiffusion",
    "DreamPolicy",
    "MaskedDecoder",
    "SDARConfig",
    "SDARForMaskedDiffusion",
    "SDARPolicy",
]
