"""LLaDA as a policy: text over the whole vocabulary of the language model."""

from __future__ import annotations

from typing import Any

from ..text_canvas import TextPolicy
from .modeling import LLaDAForMaskedDiffusion


class LLaDAPolicy(TextPolicy):
    """Text only; the tokenizer's ids below its length, the mask id excepted."""

    model_class = LLaDAForMaskedDiffusion

    def __init__(self, config: Any, processor: Any) -> None:
        super().__init__(config, processor)
        end_of_turn = self.processor.tokenizer.convert_tokens_to_ids("<|eot_id|>")
        self.stop_token_ids = tuple(dict.fromkeys((config.eos_token_id, end_of_turn)))
