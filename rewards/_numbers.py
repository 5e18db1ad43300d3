"""Plain numbers in text: finding them, reading them exactly, comparing them.

Digits are ASCII and bounded, so that reading a number never costs more than microseconds. Every repetition in the
patterns is possessive or bounded: time is linear in the text.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction
from typing import NamedTuple


MAX_DIGITS = 1_000
"""A number with more characters than this is not read."""

TOLERANCE = Fraction(5, 10_000_000)
"""How far a decimal may be from a fraction that it rounds: half of the sixth decimal place, as in math-verify."""

_PLAIN = r"(?:(?:[0-9]{1,3}+(?:,[0-9]{3}(?![0-9]))++|[0-9]++)(?:\.[0-9]++)?+|\.[0-9]++)"
_TOKEN = re.compile(
    # A sign after a word, a number or a bracket is an operator: "5-3" ends in 3. Digits after a letter or a caret are
    # part of a name or of a unit: "25 m2" and "25 m^2" are 25.
    r"(?:(?<![\w)\]}])(?P<sign>[-+−])|(?<![A-Za-z_^0-9])(?<![0-9]\.))"
    r"(?:\\?[$£€])?+"
    rf"(?:\\[dt]?frac\{{(?P<top>-?{_PLAIN})\}}\{{(?P<bottom>{_PLAIN})\}}"
    rf"|(?P<number>{_PLAIN})(?:[eE](?P<power>[-+]?[0-9]{{1,3}})(?![0-9A-Za-z]))?+(?:\s?/\s?(?P<over>{_PLAIN}))?+)"
)
_PERCENT = re.compile(r"\s?\\?%|\s?percent\b")

_TEXT_GROUP = re.compile(r"\\(?:text|textrm|mathrm|mbox)\s*\{([^{}\\]*)\}")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z}])(?:\^(?:[23]|\{[23]\})|[²³])")
_DEGREES = re.compile(r"°|\^\{?\\circ\}?|\\degree")
_UNIT_WORD = re.compile(r"[^\W\d_]+(?:/[^\W\d_]+)*\.?")
_SHORT_UNITS = {"mm", "cm", "km", "mg", "kg", "ml", "ft", "in", "oz", "lb", "mi", "hr", "am", "pm", "yd", "sq", "of"}
_SCALES = {"hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "squared", "cubed"}
_NOT_UNITS = _SCALES | {"sqrt", "sin", "cos", "tan", "log", "plus", "minus", "times"}


class Number(NamedTuple):
    """A number as it is written. ``percent``: a percent sign follows. ``ratio``: written as a fraction."""

    value: Fraction
    percent: bool = False
    ratio: bool = False


def last_number(text: str) -> str | None:
    """The last number of a text as it is written there, with its sign and percent sign; None where there is none."""
    last = deque(_TOKEN.finditer(text), maxlen=1)
    if not last:
        return None
    match = last[0]
    percent = _PERCENT.match(text, match.end())
    return text[match.start() : percent.end() if percent else match.end()]


def read_number(expression: str) -> Number | None:
    """The number that an expression is, if it is nothing but a number and perhaps a currency sign or a unit.

    Reads a sign, thousands commas, decimals, a power of ten, ``a/b`` and ``\\frac{a}{b}`` of plain numbers. None for
    everything else, for a zero denominator, and for more than ``MAX_DIGITS`` characters.
    """
    if len(expression) > MAX_DIGITS:
        return None
    expression = expression.replace("{,}", ",").replace("\\!", "").strip().removesuffix(".")
    match = _TOKEN.match(expression)
    if match is None:
        return None
    rest = expression[match.end() :]
    percent = _PERCENT.fullmatch(_TEXT_GROUP.sub(r"\1", rest).rstrip()) is not None
    value = _value(match)
    if value is None or not (percent or _is_unit(rest)):
        return None
    return Number(value, percent, bool(match["top"] or match["over"]))


def same_number(gold: Number, prediction: Number) -> bool:
    """Exact equality of what is written. 50% equals 50 (the sign is a unit) and 1/2 (it is a factor).

    A fraction also equals its decimal with six places: 1/3 is 0.333333, and not 0.333.
    """
    pairs = [(g, p) for g in _readings(gold) for p in _readings(prediction)]
    if any(g == p for g, p in pairs):
        return True
    if gold.ratio == prediction.ratio:
        return False
    return any(abs(g - p) < TOLERANCE and 1 not in (g.denominator, p.denominator) for g, p in pairs)


def _readings(number: Number) -> list[Fraction]:
    return [number.value, number.value / 100] if number.percent else [number.value]


def _value(match: re.Match[str]) -> Fraction | None:
    top, bottom = match["top"] or match["number"], match["bottom"] or match["over"] or "1"
    value, divisor = _plain(f"{top}e{match['power'] or 0}"), _plain(bottom)
    if divisor == 0:
        return None
    return (-value if match["sign"] in ("-", "−") else value) / divisor


def _plain(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _is_unit(rest: str) -> bool:
    """Is the text behind a number nothing, or a unit in words?

    One letter is a variable unless LaTeX says that it is text; words that scale a number are not units.
    """
    if not rest.strip() or rest.strip() in ("$", "\\$"):
        return True
    rest = _UNIT_POWER.sub("", _DEGREES.sub(" ", rest))
    bare = _TEXT_GROUP.sub(" ", rest)
    words = [word.rstrip(".") for word in bare.lower().split()]
    marked = [word.lower() for group in _TEXT_GROUP.findall(rest) for word in group.split()]
    if not all(_UNIT_WORD.fullmatch(word) and word.rstrip(".") not in _NOT_UNITS for word in words + marked):
        return False
    # "2xyz" is a product and "2 xyz" may be a unit; "2cm" is a unit either way.
    apart = rest[:1].isspace()
    return all(word in _SHORT_UNITS or "/" in word or (apart and len(word) > 2) for word in words)
