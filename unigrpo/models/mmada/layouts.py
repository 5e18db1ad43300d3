"""Token layouts of MMaDA's text tasks, as pure functions on ids (``training/prompting_utils.py`` of the public code)."""

from __future__ import annotations

import torch
from torch import Tensor


def lm(texts: list[list[int]], *, bos: int, eos: int, max_length: int) -> Tensor:
    """``bos text eos`` padded on the right with eos to ``max_length``; ids int64 ``[B, max_length]``.

    A text that already starts with bos is not given a second one. A text that is too long is cut and gets no eos.
    Padding is attended in this layout: its attention mask is all ones.
    """
    rows = []
    for tokens in texts:
        row = list(tokens) if tokens[:1] == [bos] else [bos, *tokens]
        row.append(eos)
        rows.append(row[:max_length] + [eos] * (max_length - len(row)))
    return torch.tensor(rows, dtype=torch.int64)


def lm_chat(texts: list[list[int]], *, bos: int, eos: int, end_header: int, max_length: int) -> tuple[Tensor, Tensor]:
    """``lm``'s ids and the prompt mask ``[B, max_length]`` int64: 1 up to and including the last ``end_header``.

    The newline after the header belongs to the answer. A text without a header has no prompt: its mask is all zeros.
    """
    ids = lm(texts, bos=bos, eos=eos, max_length=max_length)
    is_header = ids == end_header
    after_or_at = is_header.flip(1).cumsum(1).flip(1)
    return ids, (after_or_at > 0).long()
