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


def instruction_and_picture(
    ids: Tensor, fill: Tensor, *, user: int, answer_start: int, boi: int, eoi: int
) -> tuple[Tensor, Tensor]:
    """What the user says, and the picture that stands behind it, where one does: both ``[B, L]`` bool.

    Args:
        ids: ``[B, L]``, ``... user TEXT [boi codes eoi] </user> answer_start ...``.
        fill: ``[B, L]`` bool, what is written, all of it behind.
        user: the token that opens the user's text; the first one of a row counts.
    """
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)

    def last(token: int, before: Tensor) -> Tensor:
        return place.masked_fill((ids != token) | (place >= before), -1).amax(dim=1, keepdim=True)

    closed = last(answer_start, fill.long().argmax(dim=1, keepdim=True)) - 1
    opened = place.masked_fill(ids != user, ids.shape[1]).amin(dim=1, keepdim=True)
    start = torch.where(ids.gather(1, closed - 1) == eoi, last(boi, closed), closed)
    return (place > opened) & (place < start), (place >= start) & (place < closed)


def cut_out(ids: Tensor, real: Tensor, cut: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Rows ``[B, L]``, padded on the left, without the tokens at ``cut``; ids and mask ``[B, L]``.

    What stands before them moves to the right, so that a row has no gap, and what stands behind stays where it is.
    """
    kept = real & ~cut
    order = kept.long().argsort(dim=1, stable=True)
    kept = kept.gather(1, order)
    return ids.gather(1, order).masked_fill(~kept, pad), kept


def to_the_right(real: Tensor) -> Tensor:
    """Columns ``[B, L]`` in the order that puts the padding of rows with ``real [B, L]`` behind them; for ``gather``."""
    return (~real).long().argsort(dim=1, stable=True)
