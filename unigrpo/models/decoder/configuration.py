"""Configurations of decoders that became masked-diffusion models: those of transformers, and what diffusion adds to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config


FOREIGN = ("auto_map", "attn_implementation", "flash_attention", "flash_attn_varlen", "fuse_cross_entropy")
"""Keys of published files that name code of their own, or switch it: nothing here reads them."""

ATTENTIONS = ("full", "block_causal")
ANCHORS = ("start", "prompt_end")


@dataclass(repr=False, kw_only=True)
class MaskedDecoderFields:
    """What a masked-diffusion decoder says of itself beside its sizes.

    Attributes:
        mask_token_id: None = the tokenizer names it.
        logit_shift: 1 where the logits at position i predict token i + 1, as those of the autoregressive model did; else 0.
        attention: ``"full"``, or ``"block_causal"``: a position sees its own block, both ways, and all earlier ones.
        block_size: positions of a block.
        block_anchor: where the first block begins: at the ``"start"`` of a row, or with the answer, at the ``"prompt_end"``.
        forbidden_token_ids: ids that are never written, beside the mask id.
        stop_token_ids: ids that end an answer; None = the end of the text and of the turn.

    Raises:
        ValueError: a value out of range, a mask id outside the vocabulary, or sliding windows.
    """

    converts: ClassVar[tuple[str, ...]] = ()
    """Types of autoregressive checkpoints that are opened as this one."""

    mask_token_id: int | None = None
    logit_shift: int = 0
    attention: str = "full"
    block_size: int | None = None
    block_anchor: str = "start"
    forbidden_token_ids: list[int] | None = None
    stop_token_ids: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]
        self._check()

    def _check(self) -> None:
        for name, choices in (("logit_shift", (0, 1)), ("attention", ATTENTIONS), ("block_anchor", ANCHORS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {choices}")
        if self.attention == "block_causal" and not (isinstance(self.block_size, int) and self.block_size > 0):
            raise ValueError(
                f"block_size={self.block_size!r} with attention='block_causal': give the positions of a block"
            )
        vocabulary = self.vocab_size  # type: ignore[attr-defined]
        for own in (self.mask_token_id, *(self.forbidden_token_ids or ()), *(self.stop_token_ids or ())):
            if own is not None and not 0 <= own < vocabulary:
                raise ValueError(f"token id {own} lies outside the vocabulary of {vocabulary}; set it to a token's id")
        if getattr(self, "use_sliding_window", False):
            raise ValueError(
                "use_sliding_window=True is not implemented: no masked-diffusion decoder was trained with windows"
            )

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers, without keys of other code; an autoregressive checkpoint counts as one of this type."""
        found, left = super().get_config_dict(*args, **kwargs)  # type: ignore[misc]
        found = {name: value for name, value in found.items() if name not in FOREIGN}
        if found.get("model_type") in cls.converts:
            found["model_type"] = cls.model_type  # type: ignore[attr-defined]
        return found, left

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Overrides given to ``from_pretrained`` are checked like fields; an ``attn_implementation`` is the caller's, never a file's."""
        fields = cls.__dataclass_fields__  # type: ignore[attr-defined]
        own = {name: value for name, value in kwargs.items() if name in fields and name != "dtype"}
        found = {name: value for name, value in config_dict.items() if name not in FOREIGN}
        return super().from_dict({**found, **own}, **kwargs)  # type: ignore[misc]

    def to_diff_dict(self) -> dict[str, Any]:
        """All that is not as in every configuration: published code has other defaults. Readers of before transformers 5 look for
        ``torch_dtype`` and ``rope_theta``.
        """
        usual = PretrainedConfig().to_dict()
        output = {name: value for name, value in self.to_dict().items() if name not in usual or usual[name] != value}  # type: ignore[attr-defined]
        if output.get("dtype") is not None:
            output["torch_dtype"] = output["dtype"]
        theta = (output.get("rope_parameters") or {}).get("rope_theta")
        return output if theta is None else {**output, "rope_theta": theta}


class DreamConfig(MaskedDecoderFields, Qwen2Config):
    """Dream (arXiv 2508.15487), Dream-Coder and DiffuCoder: Qwen2.5 with its shift. Sizes are those of Dream-v0-7B."""

    model_type = "Dream"

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 131072
    mask_token_id: int | None = 151666
    pad_token_id: int | None = 151643
    eos_token_id: int | list[int] | None = 151643
    logit_shift: int = 1


class A2DQwen2Config(MaskedDecoderFields, Qwen2Config):
    """A Qwen2 or Qwen2.5 trained on as a masked-diffusion model. Sizes are those of Qwen2.5-0.5B."""

    model_type = "a2d-qwen2"
    converts = ("qwen2",)

    hidden_size: int = 896
    intermediate_size: int = 4864
    num_hidden_layers: int = 24
    num_attention_heads: int = 14
    num_key_value_heads: int | None = 2
    tie_word_embeddings: bool = True


class A2DQwen3Config(MaskedDecoderFields, Qwen3Config):
    """A Qwen3 trained on as a masked-diffusion model. Sizes are those of Qwen3-0.6B."""

    model_type = "a2d-qwen3"
    converts = ("qwen3",)

    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 8
    head_dim: int = 128
    tie_word_embeddings: bool = True


class A2DLlamaConfig(MaskedDecoderFields, LlamaConfig):
    """A Llama trained on as a masked-diffusion model. Sizes are those of Llama-3.2-1B."""

    model_type = "a2d-llama"
    converts = ("llama",)

    vocab_size: int = 128256
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 16
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    tie_word_embeddings: bool = True
