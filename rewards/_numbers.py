"""Numbers as people write them: read exactly, compared to nine digits.

Every repetition in the patterns is possessive or bounded: time is linear in the text.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from ._exact import ONE, Value, evaluate, rational
from ._notation import normalised
from ._units import CURRENCY, SCALES, is_unit, smaller, unit_name


MAX_DIGITS = 1_000
"""A number with more characters than this is not read."""

TOLERANCE = Fraction(1, 10**9)
"""How far a decimal may be from the gold, relative to it."""

_PLAIN_ONLY = re.compile(r"[-+]?[0-9]{1,300}(?:\.[0-9]{1,300})?")
GROUPED = (
    r"(?:(?:[0-9]{1,3}+(?:,[0-9]{3}(?![0-9]))++|[0-9]{1,2}+(?:,[0-9]{2}(?=,))++,[0-9]{3}(?![0-9])"
    r"|[0-9]{1,3}+(?: [0-9]{3}(?![0-9]))++|[0-9]++)(?:\.[0-9]++)?+|\.[0-9]++)"
)
_TEN = r"\s{0,3}(?:\\times|\\cdot|\*|x)\s{0,3}10\s?\^\s?(?:\{\s?([-+]?[0-9]{1,3})\s?\}|([-+]?[0-9]{1,3}))"
_BODY = re.compile(
    rf"(?:(?P<hex>0x[0-9A-Fa-f]{{1,64}}+)(?![0-9A-Za-z])"
    r"|(?P<start>[0-9]*+\.[0-9]*?)(?:\\(?:overline|bar|dot)\s?\{?(?P<over>[0-9]{1,40})\}?|\((?P<brackets>[0-9]{1,40})\)|(?P<more>[0-9]{3,40})\\ldots)"
    r"|(?P<whole>[0-9]{1,300}+)(?:\s|\s?(?=\\))(?:(?P<top>[0-9]{1,40}+)/(?P<bottom>[0-9]{1,40}+)(?![0-9.])"
    r"|\\frac\{(?P<upper>[0-9]{1,40}+)\}\{(?P<lower>[0-9]{1,40}+)\})"
    rf"|(?P<power>10)\s?\^\s?(?:\{{\s?(?P<raised>[-+]?[0-9]{{1,3}})\s?\}}|(?P<bare>[0-9]{{1,3}}))"
    rf"|(?P<number>{GROUPED})(?:[eE](?P<exponent>[-+]?[0-9]{{1,3}})(?![0-9A-Za-z])|{_TEN})?+)"
)
_LEAD = re.compile(r"(?:\\approx|\\sim|\\simeq|~)\s?")
_SIGN = re.compile(rf"(?:{CURRENCY}\s?)?+([-+]\s?)?+(?P<currency>{CURRENCY}\s?)?+")
_SCALE = re.compile(r"\s?(?:\\text\{\s?)?(" + "|".join(SCALES) + r")(?![A-Za-z])(\s?\})?")
_PERCENT = re.compile(r"\s?(?:\\?%|(?:\\text\{\s?)?per\s?cent(?![A-Za-z])\s?\}?)")
_TAIL = re.compile(
    r"(?:\s?\\text\s?\{(?:[^{}]|\{[^{}]*\}){0,80}\}(?:\^\{?[0-9]\}?)?|\s?\^\\circ| [A-Za-z]{2,20}| [mghs])(?:\s?\^\\circ)?$"
)
_GROUP = re.compile(r"\\text\s?\{([^{}]*)\}")
_TWO = re.compile(r"(\$?[0-9.,]{1,40}+\s?[A-Za-z]{1,20}+)(?:\s?,)?(?:\s?and)?\s?([0-9.,]{1,40}+\s?[A-Za-z]{1,20}+)\.?")


@dataclass(frozen=True, slots=True)
class Number:
    """A number and how it is written.

    Attributes:
        value: see ``_exact``; a plain number is ``{(1, 0): its value}``, and 0 is ``{}``.
        percent: a percent sign follows.
        ratio: it is written as a fraction.
        open: operators between plain numbers are left to be worked out.
        unreduced: a fraction is not in lowest terms.
        formula: it is written with roots, powers and the like.
        unit: one of the units that have a name in ``_units``.
    """

    value: Value
    percent: bool = False
    ratio: bool = False
    open: bool = False
    unreduced: bool = False
    formula: bool = False
    unit: str | None = None

    @property
    def plain(self) -> bool:
        """A rational number, written as one."""
        return not self.formula and not self.open


def is_plain(text: str) -> bool:
    """Nothing but a sign, digits and a point."""
    return _PLAIN_ONLY.fullmatch(text) is not None


def read_number(text: str) -> Number | None:
    r"""The number that an expression is, if it is nothing but a number and perhaps a currency sign or a unit.

    Reads a sign, separators, decimals, repeating decimals, powers of ten, ``million``, mixed numbers, percent, and
    expressions that ``_exact`` works out. None for everything else, for a zero denominator, and for more than
    ``MAX_DIGITS`` characters.
    """
    if _PLAIN_ONLY.fullmatch(text):
        return Number(_value(Fraction(text)))
    return None if len(text) > MAX_DIGITS else _read(text)


@lru_cache(maxsize=4096)
def _read(text: str) -> Number | None:
    text = normalised(text).removesuffix(".")
    return _dressed(text) or _worked_out(text) or _two_units(text)


def _value(number: Fraction) -> Value:
    return {ONE: number} if number else {}


def _dressed(text: str) -> Number | None:
    """A single number with what may stand before and behind it."""
    lead = _LEAD.match(text)
    start = _SIGN.match(text, lead.end() if lead else 0)
    body = _BODY.match(text, start.end())
    value = None if body is None else _body_value(body)
    if value is None:
        return None
    rest = text[body.end() :]
    scale = _SCALE.match(rest)
    if scale:
        value *= SCALES[scale[1]]
        rest = rest[scale.end() :] if scale[2] or "{" not in scale[0] else "\\text{" + rest[scale.end() :]
    percent = _PERCENT.match(rest)
    rest = rest[percent.end() :] if percent else rest
    if not is_unit(rest):
        return None
    value = -value if (start[1] or "").startswith("-") else value
    unit = unit_name(rest) or unit_name(text[: start.end()].strip(" +-"))
    return Number(_value(value), percent is not None, body["whole"] is not None, unit=unit)


def _body_value(body: re.Match[str]) -> Fraction | None:
    if body["hex"]:
        return Fraction(int(body["hex"], 16))
    if body["start"] is not None:
        block = body["over"] or body["brackets"] or _period(body["more"])
        return block and _repeating(body["start"] + (body["more"] or "").removesuffix(block), block)
    if body["whole"]:
        top, bottom = int(body["top"] or body["upper"]), int(body["bottom"] or body["lower"])
        return int(body["whole"]) + Fraction(top, bottom) if top < bottom else None
    if body["power"]:
        return Fraction(10) ** int(body["raised"] or body["bare"])
    exponent = next((own for own in body.groups()[-3:] if own), None)
    value = Fraction(re.sub("[, ]", "", body["number"]))
    return value * Fraction(10) ** int(exponent) if exponent else value


def _period(digits: str) -> str | None:
    """The block that the digits before three dots repeat: at least twice, or three times if it is one digit."""
    for length in range(1, len(digits) // 2 + 1):
        block = digits[-length:]
        if digits.endswith(block * (3 if length == 1 else 2)):
            return block
    return None


def _repeating(start: str, block: str) -> Fraction:
    places = len(start.partition(".")[2])
    tail = Fraction(int(block), (10 ** len(block) - 1) * 10**places)
    return Fraction(start if start.strip(".") else "0") + tail if places or start.strip(".") else tail


def _worked_out(text: str) -> Number | None:
    lead = _LEAD.match(text)
    text = text[lead.end() :] if lead else text
    tail = _TAIL.search(text)
    percent = _PERCENT.search(text)
    if percent and percent.end() == len(text):
        text = text[: percent.start()]
    elif tail and tail.start() and is_unit(tail[0]):
        text = text[: tail.start()]
    found = evaluate(text)
    if found is None:
        return None
    percent_sign = percent is not None and percent.end() >= len(text)
    ratio = "/" in text or "\\frac" in text
    unit = unit_name(tail[0]) if tail else None
    return Number(found.value, percent_sign, ratio, found.open, found.unreduced, found.other, unit)


def _two_units(text: str) -> Number | None:
    """3 hours and 20 minutes, in the larger unit."""
    match = _TWO.fullmatch(" ".join(_GROUP.sub(r" \1 ", text).split()))
    first, second = (_dressed(match[1]), _dressed(match[2])) if match else (None, None)
    factor = smaller(first.unit, second.unit) if first and second else None
    if factor is None:
        return None
    value = rational(first.value) + rational(second.value) / factor
    return Number(_value(value), unit=first.unit)


def same_number(gold: Number, prediction: Number) -> bool:
    """Equality to a relative 1e-9 of the gold; whole numbers are compared exactly.

    50 % equals 50 (the sign is a unit) and 1/2 (it is a factor) where one of the two has the sign. Units that are both
    known must be the same.
    """
    if gold.unit and prediction.unit and gold.unit != prediction.unit:
        return False
    if gold.percent == prediction.percent:
        return same_value(gold.value, prediction.value)
    if gold.percent:
        return same_value(gold.value, prediction.value) or same_value(_hundredth(gold.value), prediction.value)
    return same_value(gold.value, prediction.value) or same_value(gold.value, _hundredth(prediction.value))


def _hundredth(value: Value) -> Value:
    return {key: factor / 100 for key, factor in value.items()}


def same_value(gold: Value, prediction: Value) -> bool:
    """Equality of two values: exactly, or to nine digits where one of them is a decimal."""
    if gold == prediction:
        return True
    left, right = rational(gold), rational(prediction)
    if left is not None and right is not None:
        return not left.denominator == right.denominator == 1 and abs(left - right) <= TOLERANCE * abs(left)
    if (left is None) == (right is None):
        return False
    try:
        approximate, other = _approximate(gold), _approximate(prediction)
    except OverflowError:
        return False
    return abs(approximate - other) <= float(TOLERANCE) * abs(approximate)


def _approximate(value: Value) -> float:
    return math.fsum(float(factor) * math.sqrt(root) * math.pi**power for (root, power), factor in value.items())
