"""A head with its inputs, and errors relative to the largest value."""

from __future__ import annotations

import torch

from unigrpo.models.head import VocabularyHead
from unigrpo.types import TokenSpace


SIZE, VOCAB = 24, 301


SPACES = {
    "whole": TokenSpace(start=0, stop=VOCAB),
    "excluded": TokenSpace(start=0, stop=VOCAB, exclude=(0, 7, VOCAB - 1)),
    "slice": TokenSpace(start=40, stop=201, exclude=(40, 133)),
}


def problem(rows: int, space: TokenSpace, dtype: torch.dtype = torch.float32, frozen: bool = True):
    """A head, hidden states and targets inside the space, all well away from uniform."""
    generator = torch.Generator().manual_seed(rows)
    head = VocabularyHead(SIZE, VOCAB, bias=False, dtype=dtype).requires_grad_(not frozen)
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCAB, SIZE, generator=generator) * 0.5)
    hidden = torch.randn(rows, SIZE, generator=generator).to(dtype).requires_grad_()
    allowed = torch.arange(space.start, space.stop)
    allowed = allowed[space.contains(allowed)]
    targets = allowed[torch.randint(len(allowed), (rows,), generator=generator)]
    return head, hidden, targets


def worst(difference: torch.Tensor) -> float:
    return float(difference.detach().abs().max())


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return worst(actual.double() - expected) / worst(expected)
