"""Token layouts of Lumina-DiMOO, as pure functions on ids (arXiv 2510.06308, section on tokens; github.com/Alpha-VLLM/Lumina-DiMOO)."""

from __future__ import annotations

import torch
from torch import Tensor


def picture(codes: Tensor, grid: tuple[int, int], *, boi: int, eoi: int, newline: int) -> Tensor:
    """``boi``, each row of the ``grid`` (rows, columns) followed by ``newline``, ``eoi``; int64 ``[rows * (columns + 1) + 2]``.

    ``codes`` are vocabulary ids ``[rows * columns]``, row-major, or the mask id.

    Raises:
        ValueError: the codes do not fill the grid.
    """
    rows, columns = grid
    if codes.numel() != rows * columns:
        raise ValueError(f"{codes.numel()} codes do not fill a picture of {rows} x {columns} codes")
    lines = torch.nn.functional.pad(codes.reshape(rows, columns), (0, 1), value=newline)
    return torch.nn.functional.pad(torch.nn.functional.pad(lines.flatten(), (1, 0), value=boi), (0, 1), value=eoi)


def length(grid: tuple[int, int]) -> int:
    """Positions of ``picture``."""
    return grid[0] * (grid[1] + 1) + 2


def unconditional(
    ids: Tensor, real: Tensor, *, user: int, uncondition: int, answer_start: int, pad: int
) -> tuple[Tensor, Tensor]:
    """Rows to draw with ``uncondition`` in place of what the user says; ids and mask ``[B, L]``, padded on the left.

    What stands before it moves to the right, so that a row has no gap, and what stands behind stays where it is.

    Args:
        ids, real: ``[B, L]``, ``[pad]* ... user TEXT </user> answer_start ...``; the text is not empty.
        user: the token that opens the user's text; the first one of a row counts.
    """
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    opened = place.masked_fill(ids != user, ids.shape[1]).amin(dim=1, keepdim=True)
    end = place.masked_fill(ids != answer_start, -1).amax(dim=1, keepdim=True) - 1  # That of </user>.
    before, moved = place < end - 1, end - opened - 2
    source = torch.where(before, place - moved, place)
    kept = torch.where(before, real.gather(1, source.clamp(min=0)) & (source >= 0), real)
    found = ids.gather(1, source.clamp(min=0)).masked_fill(place == end - 1, uncondition)
    return found.masked_fill(~kept, pad), kept


def to_the_right(real: Tensor) -> Tensor:
    """Columns ``[B, L]`` in the order that puts the padding of rows with ``real [B, L]`` behind them; for ``gather``."""
    return (~real).long().argsort(dim=1, stable=True)
