"""A model of random weights, two policies and canvases for samplers that come without their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..models import DiffusionPolicy, LLaDAConfig, LLaDAForMaskedDiffusion
from ..models.base import left_pad
from ..types import Canvas, TokenSpace


PAD, MASK, STOP, OPEN, CLOSE = range(5)
WORDS = (5, 15)
CODES = (15, 31)
"""Ids ``[start, stop)`` of words and of picture codes."""

LENGTH = 8
"""Positions to write."""

SIZES: dict[str, Any] = {
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 4,
    "mlp_hidden_size": 48,
    "vocab_size": CODES[1],
}

PROMPTS = ([5, 6, 7], [9, STOP, 14, 8, 20, 21, 6], [12], [5, 6, 7], [14, 14, 8, 5], [10, 25])
"""Prompts of several lengths, two of them equal. They hold what answers are made of, a stop token and codes too."""

TWINS = (0, 3)
"""The rows with equal prompts."""


def tiny_model() -> LLaDAForMaskedDiffusion:
    """A LLaDA of 20,000 weights, always the same ones. The global generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LLaDAForMaskedDiffusion(LLaDAConfig(**SIZES, mask_token_id=MASK, pad_token_id=PAD, eos_token_id=PAD))
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "wte" not in name:
                # Twice as sure as at the start of training, so that the visible tokens matter.
                parameter.data.mul_(2.0)
    return model.eval()


class TinyPolicy(DiffusionPolicy):
    """Prompts are lists of ids, answers are words or codes; a token stands behind the answer too.

    Args:
        has_mask: whether holes hold a mask id, or random tokens.
    """

    linear_head = supports_cache = mask_optional = True
    pad_token_id, stop_token_ids, processor = PAD, (STOP,), None

    def __init__(self, has_mask: bool = True) -> None:
        self.mask_token_id = MASK if has_mask else None

    def token_space(self, task: str) -> TokenSpace:
        """Codes for ``"t2i"``; else the stop token and the words."""
        if task == "t2i":
            return TokenSpace(start=CODES[0], stop=CODES[1])
        return TokenSpace(start=0, stop=WORDS[1], exclude=(PAD, MASK, OPEN, CLOSE))

    def encode(self, rows: list[dict[str, Any]], task: str = "text", **lengths: Any) -> Canvas:
        """``[pad]* prompt OPEN hole*LENGTH CLOSE word``; ``lengths`` are ignored."""
        hole = PAD if self.mask_token_id is None else MASK
        ids, real = left_pad([[*row["prompt"], OPEN, *[hole] * LENGTH, CLOSE, WORDS[0]] for row in rows], PAD)
        fill = torch.zeros_like(real)
        fill[:, -LENGTH - 2 : -2] = True
        return Canvas(ids=ids, fill_mask=fill, attention_mask=real, task=task, token_space=self.token_space(task))

    def guidance_canvas(self, canvas: Canvas) -> Canvas:
        """As in every policy; without a mask id the prompt becomes padding."""
        if self.mask_token_id is not None:
            return super().guidance_canvas(canvas)
        hidden = canvas.attention_mask & ~canvas.fill_mask
        return Canvas(
            ids=canvas.ids.masked_fill(hidden, self.pad_token_id),
            fill_mask=canvas.fill_mask,
            attention_mask=canvas.attention_mask,
            task=canvas.task,
            token_space=canvas.token_space,
        )

    def decode(self, canvas: Canvas, completion_mask: Tensor) -> list[Any]:
        """Words as ``"5 9 2"``, codes as a tensor counted from 0."""
        rows = [ids[mask] for ids, mask in zip(canvas.ids, completion_mask, strict=True)]
        if canvas.task == "t2i":
            return [ids - CODES[0] for ids in rows]
        return [" ".join(str(token) for token in ids.tolist()) for ids in rows]
