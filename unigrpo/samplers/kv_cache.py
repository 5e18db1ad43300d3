"""Keys and values that are kept: while a block is written (Fast-dLLM, arXiv 2505.22618), or for good once it is finished."""

from __future__ import annotations

import torch

from ..models.base import DiffusionPolicy
from ..models.cache import GrowingCache, KeyValueCache
from ..models.placing import upload


EXACT = ("none", "exact")
"""Kinds of caches that change no answer."""


def check_cache(kind: str, policy: DiffusionPolicy | type[DiffusionPolicy], where: str = "") -> None:
    """Raises ``ValueError`` for a cache that the policy's model cannot keep, unless nothing depends on it; ``where`` prefixes the key."""
    if kind not in EXACT and not policy.supports_cache:
        name = policy.__name__ if isinstance(policy, type) else type(policy).__name__
        raise ValueError(f"{where}kv_cache={kind!r}: {name} has no cache (supports_cache=False); set kv_cache='none'")


class BlockCache:
    """The cache of the active block: filled by the block's first forward, used by its later ones.

    Args:
        kind: ``"prefix"`` keeps what stands before the block and computes the rest, ``"dual"`` keeps both sides and computes
            the block alone.
        policy: its logits may be shifted: then the block is predicted from one column earlier.
        guided: the batch is ``[conditional; unconditional]``.
        length: L of the canvas.

    Raises:
        ValueError: a policy whose model cannot keep keys and values.
    """

    def __init__(self, kind: str, policy: DiffusionPolicy, guided: bool, length: int) -> None:
        check_cache(kind, policy)
        self.kind, self.shift, self.guided, self.length = kind, policy.logit_shift, guided, length
        self.block, self.rows, self.cache = -1, list[int](), KeyValueCache()

    def ready(self, block: int, rows: list[int], start: int, stop: int) -> KeyValueCache:
        """The cache for the next forward of ``rows``, which compute the columns ``[start, stop)``: those of ``block``, and
        holes before it.

        Rows only ever leave while a block is being written.
        """
        if block != self.block:
            self.block, self.rows, self.cache = block, rows, KeyValueCache()
            return self.cache
        if len(rows) < len(self.rows):
            staying = set(rows)
            stay = [place for place, row in enumerate(self.rows) if row in staying]
            self.cache.take(stay + [place + len(self.rows) for place in stay] if self.guided else stay)
            self.rows = rows
        self.cache.span = (start - self.shift, stop if self.kind == "dual" else self.length)
        return self.cache


class SettledBlocks:
    """The cache of rows that write block after block, each at its own: what stands before a row's block is computed once.

    The first forward of a row in a block computes the finished block before it too, which puts its final keys into the cache; the
    very first one computes the whole prompt.

    Args:
        shift: of the policy's logits: then a block is predicted from one column earlier.
        guided: the batch is ``[conditional; unconditional]``.
        length: L of the canvas.
    """

    def __init__(self, shift: int, guided: bool, length: int) -> None:
        self.shift, self.guided = shift, guided
        self.settled, self.cache = dict[int, int](), GrowingCache(length)

    def ready(self, rows: list[int], spans: list[tuple[int, int]], device: torch.device) -> GrowingCache:
        """The cache for the next forward of ``rows``, which stand at the columns ``spans``. Rows only ever leave.

        All rows compute equally many columns; those that need fewer compute some of what they have once more.
        """
        if self.settled and len(rows) < len(self.settled):
            staying = set(rows)
            stay = [place for place, row in enumerate(self.settled) if row in staying]
            self.cache.take(stay + [place + len(self.settled) for place in stay] if self.guided else stay)
        lows = [
            max(min(self.settled.get(row, 0), start - self.shift), 0)
            for row, (start, _) in zip(rows, spans, strict=True)
        ]
        width = max(stop - low for low, (_, stop) in zip(lows, spans, strict=True))
        firsts = upload([max(stop - width, 0) for _, stop in spans], device)
        columns = firsts[:, None] + torch.arange(width, device=device)
        self.cache.span = torch.cat([columns, columns]) if self.guided else columns
        self.settled = {row: start for row, (start, _) in zip(rows, spans, strict=True)}
        return self.cache
