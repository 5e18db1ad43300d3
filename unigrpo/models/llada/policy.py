"""LLaDA as a policy: text over the whole vocabulary of the language model."""

from __future__ import annotations

from typing import Any

from ...types import Canvas, TokenSpace
from ..text_canvas import TextCanvasPolicy
from .modeling import LLaDAForMaskedDiffusion


class LLaDAPolicy(TextCanvasPolicy):
    """Text only; the tokenizer's ids below its length, the mask id excepted."""

    model_class = LLaDAForMaskedDiffusion

    def __init__(self, config, processor) -> None:
        super().__init__(config, processor)
        end_of_turn = self.processor.tokenizer.convert_tokens_to_ids("<|eot_id|>")
        self.stop_token_ids = tuple(dict.fromkeys((config.eos_token_id, end_of_turn)))

    def encode(self, rows: list[dict[str, Any]], task: str = "text", **lengths: Any) -> Canvas:
        """The canvas of text rows; ``lengths`` as in ``encode_text``."""
        if task != "text":
            raise ValueError(f"task={task!r} is not supported: LLaDA reads and writes text only")
        return self.encode_text(rows, task, **lengths)

    def token_space(self, task: str) -> TokenSpace:
        """Ids that the tokenizer can decode, minus the mask id."""
        stop = min(len(self.processor.tokenizer), self.config.vocab_size)
        return TokenSpace(start=0, stop=stop, exclude=(self.mask_token_id,))
