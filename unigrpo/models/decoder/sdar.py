"""SDAR (arXiv 2510.06303) and TraDo (arXiv 2509.06949): block diffusion on Qwen3, under Qwen3's key names."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model, Qwen3PreTrainedModel
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from .configuration import MaskedDecoderFields
from .modeling import MaskedDecoder
from .policy import DecoderPolicy


class SDARConfig(MaskedDecoderFields, Qwen3Config):
    """Qwen3 in blocks that are counted from the first token of a row. Sizes are those of SDAR-4B-Chat."""

    model_type = "sdar"

    hidden_size: int = 2560
    intermediate_size: int = 9728
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int = 128
    tie_word_embeddings: bool = False
    mask_token_id: int | None = 151669
    attention: str = "block_causal"
    block_size: int | None = 4


class WideRMSNorm(Qwen3RMSNorm):
    """A norm that multiplies with its weight in fp32 and rounds once, as the kernel of flash-attn does that SDAR was trained with.

    Qwen3's rounds before the weight too, which is another number in half precision.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[..., d]`` to the same shape and dtype."""
        wide = hidden_states.float()
        wide = wide * (wide.square().mean(dim=-1, keepdim=True) + self.variance_epsilon).rsqrt()
        return (wide * self.weight.float()).to(hidden_states.dtype)


def widen_norms(trunk: nn.Module) -> None:
    """Puts a ``WideRMSNorm`` in the place of each norm, those of queries and keys too."""
    for name, norm in list(trunk.named_modules()):
        if isinstance(norm, Qwen3RMSNorm):
            trunk.set_submodule(name, WideRMSNorm(norm.weight.shape[0], norm.variance_epsilon))


class SDARModel(Qwen3Model):
    """Qwen3's trunk with SDAR's norms."""

    def __init__(self, config: SDARConfig) -> None:
        super().__init__(config)
        widen_norms(self)


class SDARForMaskedDiffusion(MaskedDecoder, Qwen3PreTrainedModel):
    """SDAR and TraDo, 1.7B to 8B."""

    config_class = SDARConfig
    trunk_class = SDARModel


class SDARPolicy(DecoderPolicy):
    """SDAR and TraDo. ``config.json`` names the end of a text; the end of a turn, ``<|im_end|>``, is the tokenizer's."""

    model_class = SDARForMaskedDiffusion
