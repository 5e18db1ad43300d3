"""Rows as two copies, noisy and clean, so that all blocks of an answer are scored in one pass.

A noisy block sees itself and the clean blocks before it; a clean block sees itself and the clean blocks before it. So every block
is scored as when it was written: behind finished blocks. BD3LM (arXiv 2503.09573), SDAR (arXiv 2510.06303).

Nothing is computed twice, and nothing that nobody reads. A clean block is there once for all rows that have the same text up to
its end: the prompt of a group, the answer under several draws of noise. A row has noisy copies of blocks with a wanted column
alone, and clean ones of the blocks before them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..placing import upload


BEHIND = 2**31 - 1
"""The block of columns that are no part of a row."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of n sequences hold, ``[n, m]`` each.

    Attributes:
        ids, positions: int64.
        row, last: the first and the last row that a clean column belongs to, by their places in the sequence; -1, -2 where a
            column belongs to none.
        block: counted from the beginning of a row.
        noisy: bool.
    """

    ids: Tensor
    positions: Tensor
    row: Tensor
    last: Tensor
    block: Tensor
    noisy: Tensor

    def seen(self) -> Tensor:
        """Which keys each column attends to, ``[n, m, m]`` bool. A column of no row sees itself: attention needs a key."""
        row, block, noisy = (own[:, :, None] for own in (self.row, self.block, self.noisy))
        first, last, key_block, key_noisy = (own[:, None] for own in (self.row, self.last, self.block, self.noisy))
        itself = noisy & (key_block == block)
        earlier = key_block + noisy.int() <= block
        mine = (first <= row) & (row <= last)
        alone = torch.eye(self.row.shape[1], dtype=torch.bool, device=self.row.device)
        return mine & torch.where(key_noisy, itself, earlier) | alone


def lay_out(
    noisy_ids: Tensor,
    clean_ids: Tensor,
    real: Tensor | None,
    positions: Tensor,
    blocks: Tensor,
    wanted: Tensor | None,
    *,
    shift: int,
    width: int,
) -> tuple[Columns, Tensor]:
    """Sequences of clean and noisy columns, and the flat column that stands for each position.

    The host reads ids and masks once, and so waits for a device once a forward.

    Args:
        noisy_ids, clean_ids: ``[B, L]`` int64.
        real: ``[B, L]`` bool, False = padding; None = no padding.
        positions, blocks: ``[B, L]`` or ``[L]`` int64.
        wanted: ``[B, L]`` bool, positions whose hidden states are read; None = all.
        shift: 1 where a position predicts the next token: what predicts the first token of a block is then clean.
        width: the length of a sequence at which attention costs as much as the rest of a layer.

    Returns:
        The columns, and ``[B, L]`` int64, which of the n m columns holds each wanted position; 0 at others.
    """
    everywhere = torch.ones_like(noisy_ids)
    parts = [noisy_ids, clean_ids, positions, blocks, *(everywhere if own is None else own for own in (real, wanted))]
    table = torch.stack([own.long().expand_as(noisy_ids) for own in parts]).cpu()
    order = (table[4] == 0).long().argsort(dim=1, stable=True)
    rows = _Rows(table.gather(2, order.expand_as(table)), shift)
    columns, place = rows.sequences(min(_divisions(len(order)), key=lambda size: rows.cost(size, width)))
    device = noisy_ids.device
    place = torch.zeros_like(order).scatter(1, order, place)
    # One copy to the device: numbers are small, and a flag is one.
    moved = upload(torch.stack([own.long() for own in columns]), device).unbind()
    return Columns(*moved[:2], *(own.int() for own in moved[2:5]), moved[5].bool()), upload(place, device)


def _divisions(count: int) -> list[int]:
    """Rows that may share a sequence: 1, 2, 4, ..., all of them."""
    return [*(2**power for power in range((count - 1).bit_length())), count]


class _Rows:
    """Rows on the host, their padding moved behind them, sorted so that rows with a common beginning are neighbours."""

    def __init__(self, table: Tensor, shift: int) -> None:
        real = table[4].bool()
        wanted = table[5].bool() & real
        begins = torch.nn.functional.pad(table[3][:, 1:] != table[3][:, :-1], (1, 0))
        block = begins.long().cumsum(dim=1).masked_fill(~real, BEHIND)
        crosses = torch.zeros_like(wanted)
        if shift:
            crosses[:, :-1] = (block[:, 1:] != block[:, :-1]) & real[:, 1:]
        # Blocks with a wanted noisy column, and the last clean block that any wanted column sees or is.
        inside, within = wanted & ~crosses, torch.where(real, block, block.shape[1])
        needed = torch.zeros(len(block), block.shape[1] + 1).scatter_add(1, within, inside.float()) > 0
        last = torch.where(wanted, block - inside.long(), -1).amax(dim=1, keepdim=True)
        clean, noisy = block <= last, needed.gather(1, within) & real
        texts = torch.stack([table[1], table[2], block], dim=2).masked_fill(~clean[..., None], BEHIND)
        self.order = torch.tensor(sorted(range(len(block)), key=texts.tolist().__getitem__))
        self.clean, self.noisy, self.block = clean[self.order], noisy[self.order], block[self.order]
        self.wanted, self.crosses = wanted[self.order], crosses[self.order]
        self.ids = table[:2].flip(0)[:, self.order].transpose(0, 1)
        self.positions = table[2][self.order]
        self.shared = _shared_blocks(texts[self.order])

    def _joined(self, size: int) -> Tensor:
        """Blocks ``[B]`` that each row shares with the one before it in sequences of ``size`` rows."""
        return torch.where(torch.arange(len(self.shared)) % size == 0, 0, self.shared)

    def _own(self, size: int) -> Tensor:
        """Columns ``[B, 2, L]`` that each row adds to its sequence, clean and noisy."""
        fresh = self.clean & (self.block >= self._joined(size)[:, None])
        return torch.stack([fresh, self.noisy], dim=1)

    def _cut(self, values: Tensor, size: int) -> Tensor:
        """``values [B, 2, L]`` as ``[n, size 2 L]``, rows of no columns added."""
        missing = -len(values) % size
        return torch.cat([values, values.new_zeros(missing, *values.shape[1:])]).reshape(-1, size * values[0].numel())

    def cost(self, size: int, width: int) -> int:
        """Of a layer over all sequences, which are as long as the longest: products, and attention to every column."""
        counts = self._cut(self._own(size), size).sum(dim=1)
        longest = int(counts.max())
        return len(counts) * longest * (longest + width)

    def sequences(self, size: int) -> tuple[list[Tensor], Tensor]:
        """The fields of ``Columns``, and where each position of the rows as they came stands."""
        own, block, joined = self._own(size), self.block[:, None].expand(-1, 2, -1), self._joined(size)
        held = self._cut(own, size)
        longest = max(int(held.sum(dim=1).max()), 1)
        source = (~held).int().argsort(dim=1, stable=True)[:, :longest]
        row = torch.arange(len(block))[:, None, None].expand_as(block) % size
        last, alive = row.clone(), torch.tensor([True, False])[:, None].expand_as(block)
        for ahead in range(1, size):
            later = torch.cat([joined[ahead:], joined.new_zeros(min(ahead, len(joined)))])
            alive = alive & (later[:, None, None] > block)
            last = last + alive
        noisy = torch.tensor([False, True])[:, None].expand_as(block)
        fields = (self.ids, self.positions[:, None].expand_as(block), row, last, block, noisy)
        taken = [self._cut(value, size).gather(1, source) for value in fields]
        used = held.gather(1, source)
        taken[2], taken[3] = taken[2].masked_fill(~used, -1), taken[3].masked_fill(~used, -2)
        rank = held.long().cumsum(dim=1) - 1 + longest * torch.arange(len(held))[:, None]
        rank = rank.view(-1, *block.shape[1:])[: len(block)]
        return taken, self._places(rank, joined)

    def _places(self, rank: Tensor, joined: Tensor) -> Tensor:
        """``rank [B, 2, L]`` of the copy that is read at each wanted position; of a shared block that of the row it came with."""
        found = torch.where(self.crosses, rank[:, 0], rank[:, 1])
        for own in range(1, len(rank)) if bool(self.crosses.any()) else ():
            kept = self.block[own] < joined[own]
            rank[own, 0] = torch.where(kept, rank[own - 1, 0], rank[own, 0])
            found[own] = torch.where(self.crosses[own], rank[own, 0], found[own])
        place = torch.where(self.wanted, found, 0)
        return torch.empty_like(place).index_copy_(0, self.order, place)


def _shared_blocks(texts: Tensor) -> Tensor:
    """How many of its first blocks each row has in common with the one before it, ``[B]``; ``texts [B, L, (id, position, block)]``."""
    same = (texts[1:] == texts[:-1]).all(dim=2).long().cumprod(dim=1)
    differs = same.sum(dim=1, keepdim=True)
    block = torch.nn.functional.pad(texts[..., 2], (0, 1), value=BEHIND)
    shared = torch.minimum(block[1:].gather(1, differs), block[:-1].gather(1, differs)).squeeze(1)
    return torch.cat([shared.new_zeros(1), shared])
