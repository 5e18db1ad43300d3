"""Ratios and clock times, which are written alike: ``3:4``, ``12:30``."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from ._exact import rational
from ._numbers import Number


_RATIO = re.compile(
    r"([0-9]{1,12}(?:\.[0-9]{1,6})?(?:\s?:\s?[0-9]{1,12}(?:\.[0-9]{1,6})?){1,4})\s?(?:\\text\{\s?)?([AaPp]\.?\s?[Mm]\.?)?\}?"
)


class Ratio(NamedTuple):
    """The parts as written, and hours and minutes where it can be a clock time; ``half`` is a or p."""

    parts: tuple[Fraction, ...]
    clock: tuple[int, int] | None
    half: str | None


def read_ratio(text: str) -> Ratio | None:
    """A ratio or a clock time; None for anything else."""
    match = _RATIO.fullmatch(text.strip())
    if match is None:
        return None
    written = re.split(r"\s?:\s?", match[1])
    clock = None
    if (
        len(written) == 2
        and re.fullmatch("[0-5][0-9]", written[1])
        and written[0].isdecimal()
        and int(written[0]) <= 24
    ):
        clock = int(written[0]), int(written[1])
    half = match[2][0].lower() if match[2] else None
    return Ratio(tuple(map(Fraction, written)), clock, half) if half is None or clock else None


def same_ratio(gold: Ratio | None, prediction: Ratio | None, number: Number | None = None) -> bool:
    """Equal times where both can be times, else equal ratios; a ratio of two is also the fraction that it makes."""
    if gold is None:
        return False
    if prediction is None:
        value = None if number is None or len(gold.parts) != 2 or gold.clock else rational(number.value)
        return value is not None and value * gold.parts[1] == gold.parts[0]
    if gold.clock and prediction.clock:
        if gold.half and prediction.half and gold.half != prediction.half:
            return False
        return gold.clock == prediction.clock or _day(gold) == _day(prediction)
    if gold.half or prediction.half or len(gold.parts) != len(prediction.parts):
        return False
    return all(
        a * prediction.parts[0] == b * gold.parts[0] for a, b in zip(gold.parts, prediction.parts, strict=True)
    ) and bool(gold.parts[0] or prediction.parts == gold.parts)


def _day(ratio: Ratio) -> tuple[int, int]:
    hour, minute = ratio.clock
    return (hour % 12 + 12 * (ratio.half == "p"), minute) if ratio.half else (hour, minute)
