"""What masked-diffusion decoders say about themselves: text, with ids from the configuration, else from the tokenizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...types import Canvas
from ..blocks import block_origin
from ..text_canvas import TextPolicy
from .modeling import (
    A2DLlamaForMaskedDiffusion,
    A2DQwen2ForMaskedDiffusion,
    A2DQwen3ForMaskedDiffusion,
    DreamForMaskedDiffusion,
)
from .processing import DecoderProcessor


MASKS = ("<|mask|>", "<|MASK|>")
"""Names of the mask among a tokenizer's tokens."""

ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>")
"""Names of tokens that end a text or a turn."""


class DecoderPolicy(TextPolicy):
    """Text only. Ids that the configuration does not name are the tokenizer's, and are written into it, to be saved.

    Raises:
        ValueError: no mask id anywhere, or one outside the vocabulary.
    """

    processor_class = DecoderProcessor

    def __init__(self, config: Any, processor: Any) -> None:
        super().__init__(config, processor)
        if self.attends_padding:
            raise ValueError(
                f"attn_mask_mode='none' is for checkpoints that were trained so, and {config.model_type} was not: leave it out"
            )
        tokenizer = self.processor.tokenizer
        words = tokenizer.get_vocab()
        named = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        ends = [*named, tokenizer.eos_token_id, *(words.get(name) for name in ENDS)]
        ends = list(dict.fromkeys(own for own in ends if own is not None))
        self.stop_token_ids = tuple(ends if config.stop_token_ids is None else config.stop_token_ids)
        self.logit_shift = config.logit_shift
        if config.attention == "block_causal":
            self.block_size, self.block_anchor = config.block_size, config.block_anchor
        config.mask_token_id = self.mask_token_id = _mask_of(config, tokenizer, words)
        padding = [config.pad_token_id, tokenizer.pad_token_id, *ends, self.mask_token_id]
        config.pad_token_id = self.pad_token_id = next(own for own in padding if own is not None)

    def inputs(self, canvas: Canvas, hidden: Tensor | None = None, noisy_ids: Tensor | None = None) -> dict[str, Any]:
        """As everywhere; where blocks begin with the answer, also the position at which it does."""
        inputs = super().inputs(canvas, hidden, noisy_ids)
        origin = None if self.block_size is None else block_origin(canvas, self.block_anchor)
        return inputs if origin is None else {**inputs, "block_origin": origin}


def _mask_of(config: Any, tokenizer: Any, words: dict[str, int]) -> int:
    """The mask id, by the configuration, else by the tokenizer."""
    known = [config.mask_token_id, tokenizer.mask_token_id, *(words.get(name) for name in MASKS)]
    found = next((own for own in known if own is not None), None)
    if found is None:
        raise ValueError(
            f"neither config.json nor the tokenizer names a mask id: give model_init_kwargs mask_token_id, an id below "
            f"{config.vocab_size} that no text uses (the tokenizer's ids end at {len(tokenizer) - 1})"
        )
    if not 0 <= found < config.vocab_size:
        raise ValueError(
            f"the tokenizer's mask id {found} lies outside the model's vocabulary of {config.vocab_size}: give model_init_kwargs "
            "mask_token_id, an id below it that no text uses"
        )
    return found


class DreamPolicy(DecoderPolicy):
    """Dream, Dream-Coder and DiffuCoder."""

    model_class = DreamForMaskedDiffusion


class A2DQwen2Policy(DecoderPolicy):
    """A Qwen2 turned into a masked-diffusion model."""

    model_class = A2DQwen2ForMaskedDiffusion


class A2DQwen3Policy(DecoderPolicy):
    """A Qwen3 turned into a masked-diffusion model."""

    model_class = A2DQwen3ForMaskedDiffusion


class A2DLlamaPolicy(DecoderPolicy):
    """A Llama turned into a masked-diffusion model."""

    model_class = A2DLlamaForMaskedDiffusion
