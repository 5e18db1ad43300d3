"""Exact draws from a categorical distribution with one uniform number a row."""

from __future__ import annotations

import torch
from torch import Tensor


BLOCK = 512


def draw_tokens(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF sampling from softmax(logits), the same law as Gumbel-max at 1/W of the random numbers.

    Block sums are accumulated in fp64, so that the last of 134,656 tokens is as likely as its logit says; entries stay
    fp32. Tokens whose probability underflows to 0 are never drawn.

    Args:
        logits: ``[n, W]`` fp32.
        uniforms: ``[n]`` fp64 in [0, 1).

    Returns:
        Column indices ``[n]`` int64.
    """
    n, width = logits.shape
    masses = (logits - logits.amax(dim=1, keepdim=True)).exp()
    blocks = torch.nn.functional.pad(masses, (0, -width % BLOCK)).view(n, -1, BLOCK)
    cumulative = blocks.sum(dim=2).double().cumsum(dim=1)
    threshold = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, threshold, right=True).clamp(max=cumulative.shape[1] - 1)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, 1, BLOCK)).squeeze(1)
    running = inside.double().cumsum(dim=1)
    column = torch.searchsorted(running, threshold - before, right=True)
    # fp32 block sums and fp64 running sums differ in the last digits: past the end means the last token with mass.
    last = BLOCK - 1 - (inside > 0).flip(1).int().argmax(dim=1, keepdim=True)
    return (block * BLOCK + torch.minimum(column, last)).squeeze(1)
