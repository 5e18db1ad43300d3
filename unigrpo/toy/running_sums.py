"""Running sums: four numbers are added to a first one, and every total on the way is written.

*771+6+5+5+2* is answered with *777 782 787 789*. Each total is read off the one before it, so decoding must see what it has
already written. That is what this policy is for: caches that keep old keys and values show here. Its teacher never errs, and
``making/README.md`` says how ``builtin:running_sums`` is made.
"""

from __future__ import annotations

import random
import zlib
from typing import Any


SPLITS = ("train", "test")

FIRST = range(100, 960)
ADDED = range(2, 10)
TERMS = 4
"""Numbers added to the first: no total has four digits."""

WORDS = ()
"""Prompts are spelled out character by character."""

SAMPLING = {"max_completion_length": 16, "steps": 16, "block_length": 4}
"""A total and the space behind it fill a block."""

HELD_OUT_ONE_IN = 8


def split_of(first: int, added: tuple[int, ...]) -> str:
    """The split that owns a problem; the order of what is added does not matter."""
    return "test" if zlib.crc32(f"{first} {sorted(added)}".encode()) % HELD_OUT_ONE_IN == 0 else "train"


def problems(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """``n`` rows of a split (default 1,000), a function of the arguments alone.

    Returns:
        dictionaries with ``prompt`` and ``solution``, all totals in their order.

    Raises:
        ValueError: ``split`` is not one of ``SPLITS``.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose one of {SPLITS}")
    rng = random.Random(f"running_sums/{split}/{seed}")
    return [_row(split, rng) for _ in range(1_000 if n is None else n)]


def solved(answer: str, solution: str) -> bool:
    """Whether every total is right."""
    return answer.split() == solution.split()


def lessons(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """``problems`` with their totals in ``completion``."""
    return [{**row, "completion": row["solution"]} for row in problems(split, n, seed)]


def _row(split: str, rng: random.Random) -> dict[str, Any]:
    first, added = _draw(rng)
    while split_of(first, added) != split:
        first, added = _draw(rng)
    totals = [first + sum(added[: count + 1]) for count in range(TERMS)]
    return {"prompt": "+".join(map(str, (first, *added))), "solution": " ".join(map(str, totals))}


def _draw(rng: random.Random) -> tuple[int, tuple[int, ...]]:
    return rng.choice(FIRST), tuple(rng.choice(ADDED) for _ in range(TERMS))
