"""Private random streams. Nothing in this library reads or reseeds the global generators."""

from __future__ import annotations

import hashlib

import torch


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on ``key`` alone, so that a draw is the same on any rank, device or batch."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
