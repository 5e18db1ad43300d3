"""A sequence-classification model as a reward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..models.chat_templates import render_chat


class ModelReward:
    """A sequence-classification model as a reward: logit 0 of prompt + completion, as in TRL.

    Attributes:
        offload: whether the model is on the CPU between calls.
    """

    def __init__(self, model: nn.Module, tokenizer, name: str) -> None:
        self.model, self.tokenizer, self.__name__ = model.eval(), tokenizer, name
        self.offload, self._device = False, model.device
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id

    def to(self, device: torch.device | str) -> ModelReward:
        """Moves the model, or where it is offloaded only its work."""
        self._device = torch.device(device)
        self.model.to("cpu" if self.offload else device)
        return self

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """The model where it computes, and back on the CPU where it is offloaded."""
        if not self.offload:
            yield
            return
        self.model.to(self._device)
        try:
            yield
        finally:
            self.model.to("cpu")

    def _text(self, prompt: Any, completion: Any) -> str:
        if isinstance(prompt, str):
            return prompt + completion
        return render_chat(self.tokenizer, [*prompt, *completion])

    @torch.no_grad()
    def __call__(self, prompts: list, completions: list, **_: Any) -> list[float | None]:
        is_text = [isinstance(c, str | list) for c in completions]
        texts = [self._text(p, c) for p, c, ok in zip(prompts, completions, is_text, strict=True) if ok]
        if not texts:
            return [None] * len(completions)
        batch = self.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, add_special_tokens=False)
        with self._at_work():
            scores = iter(self.model(**batch.to(self.model.device)).logits[:, 0].float().tolist())
        return [next(scores) if ok else None for ok in is_text]
