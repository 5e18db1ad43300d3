"""Keys and values kept while a block is written (Fast-dLLM, arXiv 2505.22618)."""

from __future__ import annotations

from ..models.base import DiffusionPolicy
from ..models.cache import KeyValueCache


def check_cache(kind: str, policy: DiffusionPolicy | type[DiffusionPolicy], where: str = "") -> None:
    """Raises ``ValueError`` for a cache that the policy's model cannot keep; ``where`` prefixes the key."""
    if kind != "none" and not policy.supports_cache:
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
