"""Where the blocks of a row begin, for models whose attention is causal from block to block."""

from __future__ import annotations

import torch
from torch import Tensor


def logical_positions(attention_mask: Tensor | None, length: int, device: torch.device) -> Tensor:
    """The number of real tokens before each position, ``[L]`` or with a mask ``[B, L]``; padding before a row has 0."""
    if attention_mask is None:
        return torch.arange(length, device=device)
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def block_numbers(position_ids: Tensor, origin: Tensor | None, size: int) -> Tensor:
    """The block of each of ``position_ids [L]`` or ``[B, L]``, negative before ``origin [B]``, at which block 0 begins; None = 0."""
    return (position_ids - (0 if origin is None else origin[:, None])).div(size, rounding_mode="floor")
