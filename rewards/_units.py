"""What may stand behind a number: units, currencies, scales. They are put aside, not converted."""

from __future__ import annotations

import re


SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
"""Words that multiply the number before them."""

_SAME = """
mm millimeter millimeters millimetre millimetres|cm centimeter centimeters centimetre centimetres
m meter meters metre metres|km kilometer kilometers kilometre kilometres|in inch inches|ft foot feet|yd yard yards|mi mile miles
mg milligram milligrams|g gram grams|kg kilogram kilograms|oz ounce ounces|lb lbs pound pounds
s sec second seconds|min minute minutes|h hr hrs hour hours|day days|week weeks|month months|year years
ml milliliter milliliters millilitre millilitres|l L liter liters litre litres|dollar dollars usd $|cent cents ¢|euro euros eur €
"""
_NAMES = {
    name: own.split()[0] for line in _SAME.strip().splitlines() for own in line.split("|") for name in own.split()
}
_SMALLER = {
    ("h", "min"): 60,
    ("min", "s"): 60,
    ("day", "h"): 24,
    ("week", "day"): 7,
    ("year", "month"): 12,
    ("ft", "in"): 12,
}
_SMALLER |= {
    ("dollar", "cent"): 100,
    ("euro", "cent"): 100,
    ("m", "cm"): 100,
    ("km", "m"): 1000,
    ("kg", "g"): 1000,
    ("lb", "oz"): 16,
}

CURRENCY = r"(?:\\?\$|[€£¥₹₽₩₫₺₱฿₪¢]|(?:US\s?\\?\$|USD|EUR|GBP|INR|CNY|JPY|Rs\.?)(?![A-Za-z]))"
_AROUND = re.compile(rf"\s*{CURRENCY}\s*")
_GROUP = re.compile(r"\\text\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_POWER = re.compile(r"(?<=[A-Za-z}])\s?(?:\^(?:-?[0-9]|\{-?[0-9]\})|[²³])")
_DEGREES = re.compile(r"\^\\circ ?|\\Omega ?")
_WORD = re.compile(r"[^\W\d_]+(?:/[^\W\d_]+)*\.?")
_SHORT = {"mm", "cm", "km", "mg", "kg", "ml", "ft", "in", "oz", "lb", "mi", "hr", "am", "pm", "yd", "sq", "of"}
_LETTERS = set("mghsKNJWVL")
_NO_UNITS = {
    *SCALES,
    "half",
    "squared",
    "cubed",
    "sqrt",
    "sin",
    "cos",
    "tan",
    "log",
    "plus",
    "minus",
    "times",
    "not",
    "and",
}


def is_unit(rest: str) -> bool:
    """Is the text behind a number nothing, or a unit in words?

    One letter is a variable unless LaTeX says that it is text, or it stands apart and is a common unit; words that scale a
    number are no units.
    """
    if not rest.strip() or _AROUND.fullmatch(rest):
        return True
    rest = _DEGREES.sub(" ", rest).replace("\\cdot", " ")
    marked = _WORD.findall(" ".join(_POWER.sub("", group) for group in _GROUP.findall(rest)).casefold())
    bare = _POWER.sub("", _GROUP.sub(" ", _POWER.sub("", rest)))
    # "2xyz" is a product and "2 xyz" may be a unit; "2cm" is a unit either way.
    apart = rest[:1].isspace()
    for word in bare.split():
        word = word.rstrip(".")
        plain = word.casefold()
        if not _WORD.fullmatch(word) or plain in _NO_UNITS:
            return False
        if not (
            plain in _SHORT or "/" in word or not word.isascii() or (apart and (len(word) > 2 or word in _LETTERS))
        ):
            return False
    return not {word.rstrip(".") for word in marked} & _NO_UNITS


def unit_name(text: str) -> str | None:
    """One name for each common unit and currency, with its power: ``m^2``; None for others and for none."""
    text = _GROUP.sub(r"\1", text).replace("\\$", "$").strip(" .")
    base = _POWER.sub("", text)
    name = _NAMES.get(base) or _NAMES.get(base.casefold())
    if name is None or base == text:
        return name
    power = text[len(base) :].translate(str.maketrans("²³", "23", " ^{}"))
    return f"{name}^{power}"


def smaller(unit: str | None, other: str | None) -> int | None:
    """How many of the unit ``other`` one of ``unit`` has, where the two are said together: 3 hours 20 minutes."""
    return _SMALLER.get((unit or "", other or ""))
