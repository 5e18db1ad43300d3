"""The grid of block-causal attention: which block a position belongs to."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Canvas


def logical_positions(attention_mask: Tensor | None, length: int, device: torch.device) -> Tensor:
    """The number of real tokens before each position, ``[L]`` or with a mask ``[B, L]``; padding before a row has 0."""
    if attention_mask is None:
        return torch.arange(length, device=device)
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def numbered(position_ids: Tensor, origin: Tensor | int, size: int) -> Tensor:
    """The block of each of ``position_ids [B, L]``; block 0 begins at ``origin``, ``[B, 1]`` or one for all."""
    return (position_ids - origin).div(size, rounding_mode="floor")


def block_origin(canvas: Canvas, anchor: str) -> Tensor | None:
    """The position ``[B]`` at which a block begins: after the prompt for ``"prompt_end"``; None = at the start of each row."""
    if anchor == "start":
        return None
    prompt = canvas.attention_mask & (canvas.fill_mask.cumsum(dim=1) == 0)
    return prompt.sum(dim=1)


def blocks_of(canvas: Canvas, size: int, anchor: str) -> Tensor:
    """The block ``[B, L]`` of each position of a canvas, as the model's attention counts them; padding has those of position 0."""
    places = canvas.position_ids
    if places is None:
        places = logical_positions(canvas.attention_mask, canvas.ids.shape[1], canvas.ids.device)
    origin = block_origin(canvas, anchor)
    return numbered(places, 0 if origin is None else origin[:, None], size)
