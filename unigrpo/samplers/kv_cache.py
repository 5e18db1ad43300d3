"""Keys and values kept while a block is written (Fast-dLLM, arXiv 2505.22618)."""

from __future__ import annotations

import torch
from torch import Tensor

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

    Raises:
        ValueError: a policy whose model cannot keep keys and values.
    """

    def __init__(self, kind: str, policy: DiffusionPolicy, guided: bool) -> None:
        check_cache(kind, policy)
        self.kind, self.shift, self.guided = kind, policy.logit_shift, guided
        self.block, self.rows, self.cache = -1, torch.empty(0, dtype=torch.int64), KeyValueCache()

    def ready(self, block: int, rows: Tensor, inside: Tensor) -> KeyValueCache:
        """The cache for the next forward of ``rows [b]``; ``inside [B, L]`` marks what they compute: the positions of
        ``block``, and holes before it.

        Rows only ever leave while a block is being written.
        """
        if block != self.block:
            self.block, self.rows, self.cache = block, rows, KeyValueCache()
            return self.cache
        stay = torch.isin(self.rows, rows).nonzero().squeeze(1)
        if len(stay) < len(self.rows):
            self.cache.take(torch.cat([stay, stay + len(self.rows)]) if self.guided else stay)
            self.rows = rows
        columns = inside.any(dim=0).nonzero().squeeze(1)
        stop = int(columns[-1]) + 1 if self.kind == "dual" else inside.shape[1]
        self.cache.span = (int(columns[0]) - self.shift, stop)
        return self.cache
