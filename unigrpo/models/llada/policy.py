"""LLaDA as a policy: MMaDA's text task over the whole vocabulary of the language model."""

from __future__ import annotations

from typing import Any

from ...types import Canvas, TokenSpace
from ..mmada.policy import MMaDAPolicy
from .modeling import LLaDAForMaskedDiffusion


class LLaDAPolicy(MMaDAPolicy):
    """Text only; the tokenizer's ids below its length, the mask id excepted."""

    model_class = LLaDAForMaskedDiffusion

    def __init__(self, config, processor) -> None:
        self.config, self.processor = config, processor
        self.mask_token_id = config.mask_token_id
        self.pad_token_id = config.pad_token_id
        end_of_turn = processor.tokenizer.convert_tokens_to_ids("<|eot_id|>")
        self.stop_token_ids = tuple(dict.fromkeys((config.eos_token_id, end_of_turn)))
        self.max_length = config.max_sequence_length
        self.attends_padding = config.attn_mask_mode == "none"

    def encode(self, rows: list[dict[str, Any]], task: str = "text", **lengths: Any) -> Canvas:
        """``MMaDAPolicy.encode`` for text alone."""
        if task != "text":
            raise ValueError(f"task={task!r} is not supported: LLaDA reads and writes text only")
        return super().encode(rows, task, **lengths)

    def token_space(self, task: str) -> TokenSpace:
        """Ids that the tokenizer can decode, minus the mask id."""
        stop = min(len(self.processor.tokenizer), self.config.vocab_size)
        return TokenSpace(start=0, stop=stop, exclude=(self.mask_token_id,))
