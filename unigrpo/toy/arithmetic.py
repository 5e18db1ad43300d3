"""Two-number word problems, correct reasoning traces for them, and an integer comparison of its own.

A trace is ``<think>reasoning</think>answer``. Both styles are always correct; they differ in how hard the answer is to
compute from what is already written: ``"direct"`` restates the sum, ``"steps"`` adds digit by digit.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any


SPLITS = ("train", "test")
STYLES = ("direct", "steps")

LOW, HIGH = 10, 99
"""Operands are two-digit numbers, so that every problem has the same length in tokens."""

NAMES = ("Ann", "Bob", "Eve", "Tom")
OBJECTS = ("cups", "pens", "keys", "nuts")
TEMPLATES = (
    "{name} has {a} {things} and gets {b}. Total?",
    "{name} buys {a} {things}, then {b}. Total?",
    "{name} had {a} {things} and found {b}. Total?",
)

HELD_OUT_ONE_IN = 6


def pairs(split: str) -> list[tuple[int, int]]:
    """All operand pairs ``(a, b)`` with ``a <= b`` of a split, in increasing order.

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
        seed: decides the order of the pairs and of the operands in them, and the words.

    Returns:
        dictionaries with ``prompt`` (str), ``solution`` (``"#### 72"``), and ``a``, ``b``, ``name``.
    """
    rng = random.Random(f"{split}/{seed}")
    endless = _shuffled_forever(pairs(split), rng)
    count = len(pairs(split)) if n is None else n
    return [_row(next(endless), rng) for _ in range(count)]


def trace(row: dict[str, Any], style: str) -> str:
    """A correct completion of ``row`` in one of ``STYLES``.

    Raises:
        ValueError: the style is unknown.
    """
    if style not in STYLES:
        raise ValueError(f"style={style!r}: choose one of {STYLES}")
    a, b = row["a"], row["b"]
    reasoning = f"{a}+{b}" if style == "direct" else _digit_by_digit(a, b)
    return f"<think>{reasoning}</think>{a + b}"


def integer_match(completion: str, solution: str) -> bool:
    """Whether a completion's answer is the gold integer.

    The answer is the last integer after the last ``</think>``, or of the whole text where there is none; the gold is the
    last integer of ``solution``. Thousands may be grouped by commas. A decimal number is not an integer.
    """
    answer = _last_integer(completion.rpartition("</think>")[2])
    return answer is not None and answer == _last_integer(solution)


_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")


def _last_integer(text: str) -> int | None:
    """The last number of ``text`` as an integer; None when there is none or when it has a fractional part."""
    numbers = _NUMBER.findall(text)
    if not numbers or "." in numbers[-1]:
        return None
    return int(numbers[-1].replace(",", ""))


def _all_pairs() -> Iterator[tuple[int, int]]:
    return ((a, b) for a in range(LOW, HIGH + 1) for b in range(a, HIGH + 1))


def _shuffled_forever(items: list[tuple[int, int]], rng: random.Random) -> Iterator[tuple[int, int]]:
    while True:
        yield from rng.sample(items, len(items))


def _row(pair: tuple[int, int], rng: random.Random) -> dict[str, Any]:
    a, b = rng.sample(pair, 2)
    name = rng.choice(NAMES)
    prompt = rng.choice(TEMPLATES).format(name=name, a=a, b=b, things=rng.choice(OBJECTS))
    return {"prompt": prompt, "solution": f"#### {a + b}", "a": a, "b": b, "name": name}


def _digit_by_digit(a: int, b: int) -> str:
    """Units, then tens with the carry: ``27 + 45`` is ``7+5=12,2+4+1=7``."""
    (a_tens, a_units), (b_tens, b_units) = divmod(a, 10), divmod(b, 10)
    units = a_units + b_units
    carry, written = units // 10, "+1" if units > 9 else ""
    return f"{a_units}+{b_units}={units},{a_tens}+{b_tens}{written}={a_tens + b_tens + carry}"
