"""Two-number word problems and correct reasoning traces for them.

A trace is ``<think>reasoning</think>answer``. The reasoning counts on from the first number and writes the unit digits it
passes, so that the answer's unit digit and its carry can be read off.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any


SPLITS = ("train", "test")

FIRST = range(100, 990)
SECOND = range(2, 10)
"""A three-digit and a one-digit operand: their order tells nothing, and no sum has four digits."""

NAMES = ("Ann", "Bob", "Eve", "Tom")
OBJECTS = ("cups", "pens", "keys", "nuts")
TEMPLATES = (
    "{name} has {a} {things} and gets {b}. Total?",
    "{name} buys {a} {things}, then {b}. Total?",
    "{name} had {a} {things} and found {b}. Total?",
)

HELD_OUT_ONE_IN = 8


def pairs(split: str) -> list[tuple[int, int]]:
    """All operand pairs ``(a, b)`` of a split, in increasing order.

    Raises:
        ValueError: ``split`` is not one of ``SPLITS``.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose one of {SPLITS}")
    return [pair for pair in _all_pairs() if split_of(*pair) == split]


def split_of(a: int, b: int) -> str:
    """The split that owns a pair of operands. Order does not matter: a + b and b + a are one problem."""
    low, high = sorted((a, b))
    mixed = (low * 1_000 + high) * 2_654_435_761 % 2**32
    return "test" if (mixed >> 16) % HELD_OUT_ONE_IN == 0 else "train"


def problems(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a split, a function of the arguments alone.

    Args:
        split: ``"train"`` or ``"test"``; the operands of one never occur in the other.
        n: number of rows; None = one for each pair. Beyond that, pairs repeat with other words around them.
        seed: decides the order of the pairs and the words.

    Returns:
        dictionaries with ``prompt`` (str), ``solution`` (``"#### 131"``), and ``a``, ``b``, ``name``.
    """
    rng = random.Random(f"{split}/{seed}")
    endless = _shuffled_forever(pairs(split), rng)
    count = len(pairs(split)) if n is None else n
    return [_row(next(endless), rng) for _ in range(count)]


def trace(row: dict[str, Any]) -> str:
    """The correct completion of ``row``: ``127 + 4`` is ``<think>8901</think>131``."""
    a, b = row["a"], row["b"]
    passed = "".join(str((a + step) % 10) for step in range(1, b + 1))
    return f"<think>{passed}</think>{a + b}"


FORGOTTEN = 0.6
"""How often the careless teacher forgets a carry."""


def careless_trace(row: dict[str, Any]) -> str:
    """The completion of a teacher who counts rightly, but leaves the tens as they were in ``FORGOTTEN`` of the sums with a carry.

    ``127 + 4`` is ``<think>8901</think>121`` then. The row decides: the same one always gets the same answer.
    """
    right = trace(row)
    if not carries(row) or random.Random(row["prompt"]).random() >= FORGOTTEN:
        return right
    thought, _, total = right.rpartition(">")
    return f"{thought}>{int(total) - 10}"


def carries(row: dict[str, Any]) -> bool:
    """Whether the units of the operands add up to ten or more."""
    return row["a"] % 10 + row["b"] % 10 >= 10


def lessons(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """``problems`` with a right answer each, in ``completion``."""
    return [{**row, "completion": trace(row)} for row in problems(split, n, seed)]


def careless_lessons(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """``problems`` with the careless teacher's answers."""
    return [{**row, "completion": careless_trace(row)} for row in problems(split, n, seed)]


def _all_pairs() -> Iterator[tuple[int, int]]:
    return ((a, b) for a in FIRST for b in SECOND)


def _shuffled_forever(items: list[tuple[int, int]], rng: random.Random) -> Iterator[tuple[int, int]]:
    while True:
        yield from rng.sample(items, len(items))


def _row(pair: tuple[int, int], rng: random.Random) -> dict[str, Any]:
    a, b = pair
    name = rng.choice(NAMES)
    prompt = rng.choice(TEMPLATES).format(name=name, a=a, b=b, things=rng.choice(OBJECTS))
    return {"prompt": prompt, "solution": f"#### {a + b}", "a": a, "b": b, "name": name}
