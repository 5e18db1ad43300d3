r"""Is an answer the gold? Read here where it is a number, a word, a letter, a ratio, or a list of these; else by math-verify."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import lru_cache

from ._exact import rational
from ._lists import Listed, listed, split_at
from ._math_process import Verdict
from ._notation import normalised
from ._numbers import Number, is_plain, read_number, same_number
from ._ratios import Ratio, read_ratio, same_ratio
from ._said import is_prose
from ._words import letter, option, option_letter, words


class Left(Enum):
    """What has the right value and is no answer."""

    OPEN = "operators between plain numbers are left to be worked out"


Ask = Callable[[str, str], Verdict]
"""``ask(gold, expression)``: what math-verify says."""

_WORD = re.compile(r"(?=.{0,200}?[A-Za-z]{2})[A-Za-z][A-Za-z'’ .-]{0,200}")
_BASED = re.compile(r"(-?[0-9A-Fa-f.]{1,60})_(?:\{([0-9]{1,2})\}|([0-9]{1,2}))")
_VERBATIM = re.compile(
    r"\\ldots|\\begin\{(?:cases|array)|^[A-Z][a-z]{2,} [0-9]+$|^[0-9]+ ?(?:\\text\{ ?)?R ?\}? ?[0-9]+$"
)
_REMARK = re.compile(
    r"\s?\((?:not [^()=]{1,40}|(?![^()]{0,80}\b(?:or|and|maybe|wrong|else)\b)(?:[a-z]{2,20}[ ,]?){1,2}[^()=0-9^]{0,40})\)$"
)
_RELATION = re.compile(r"[<>]|\\(?:leq|geq|neq|in|cup|cap|setminus|mathbb)(?![A-Za-z])")
_FUNCTION = re.compile(
    r"\\(?:frac|sqrt|ln|log|lg|exp|sin|cos|tan|arc[a-z]+|int|sum|prod|lim|binom|infty|pi|operatorname)"
)
_NAME = re.compile(r"[A-Za-z|\\][^+*/^<>]*")
_OPERATOR = re.compile(r"(?<=[\w)}\]!])\s?(?:[-+*/]|\\(?:times|cdot|div)(?![A-Za-z]))")
_DIGIT = re.compile("[0-9]")
_BEYOND = re.compile(r"[A-Za-z\\!^]")


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold, read: a ``Number``, ``Ratio`` or ``Listed``, a word, a letter, what is compared as it is written, or a formula.

    ``name`` is the left side of an assignment, ``x`` of ``x = 5``.
    """

    text: str
    kind: str
    value: Number | Ratio | Listed | str | None = None
    name: str | None = None

    @property
    def several(self) -> bool:
        """A list, for which several boxes may stand."""
        return isinstance(self.value, Listed) and self.value.kind == "set"


@lru_cache(maxsize=4096)
def read_gold(text: str) -> Gold:
    """What a gold is. A single word, letter or number never becomes a formula."""
    text = normalised(text)
    number = read_number(text)
    if number is not None:
        return Gold(text, "number", number)
    alone = letter(text)
    if alone:
        return Gold(text, "letter", alone)
    if _WORD.fullmatch(text):
        return Gold(text, "word", words(text))
    if _VERBATIM.search(text) and _balanced(text):
        return Gold(text, "verbatim", _verbatim(text))
    ratio = read_ratio(text)
    if ratio is not None:
        return Gold(text, "ratio", ratio)
    based = _BASED.fullmatch(text)
    if based:
        return Gold(text, "based", _based(based))
    sides = split_at(text, "=")
    read = [read_number(side) for side in sides]
    if len(sides) > 1 and read[-1] and all(own and same_number(own, read[-1]) for own in read[1:-1]):
        if read[0] and same_number(read[0], read[-1]):
            return Gold(text, "number", read[-1])
        if read[0] is None and _is_name(sides[0]):
            return Gold(text, "number", read[-1], sides[0])
    items = listed(text)
    if items is not None and len(items.items) == 1 and items.kind == "set" and text[0] == "\\":
        return Gold(text, "formula")
    if items is not None and all(read_gold(item).kind != "formula" for item in items.items):
        return Gold(text, "list", items)
    return Gold(text, "formula")


def compare(gold: Gold, prediction: str, ask: Ask, evaluated: bool = True) -> Verdict | Left:
    """What an answer is to the gold.

    Args:
        prediction: an answer as ``predicted_answer`` gives it; empty for none.
        ask: for what only math-verify can say.
        evaluated: an answer to a plain number has to be worked out.
    """
    if gold.kind == "number" and is_plain(prediction):
        return _verdict(same_number(gold.value, read_number(prediction)))
    prediction = normalised(prediction)
    if gold.kind in ("letter", "word", "verbatim", "based"):
        return _verdict(_same_text(gold, prediction))
    if not prediction:
        return ask(gold.text, "") if gold.kind == "formula" else Verdict.DIFFERENT
    chosen = option(prediction)
    if chosen and chosen[1]:
        prediction = chosen[1]
    prediction = _REMARK.sub("", prediction)
    if gold.kind == "number":
        return _to_number(gold, prediction, ask, evaluated)
    if gold.kind == "ratio":
        return _verdict(same_ratio(gold.value, read_ratio(prediction), read_number(prediction)))
    if gold.kind == "list":
        return _to_list(gold, prediction, ask, evaluated)
    return _to_formula(gold, prediction, ask)


def _verdict(equal: bool) -> Verdict:
    return Verdict.EQUAL if equal else Verdict.DIFFERENT


def _same_text(gold: Gold, prediction: str) -> bool:
    if gold.kind == "letter":
        return option_letter(prediction) == gold.value.upper()
    if gold.kind == "verbatim":
        return _verbatim(prediction) == gold.value
    if gold.kind == "based":
        based = _BASED.fullmatch(prediction)
        return (_based(based) if based else prediction) in (gold.value, gold.value.partition("_")[0])
    chosen = option(prediction)
    return words(chosen[1] if chosen and chosen[1] else prediction) == gold.value


def _verbatim(text: str) -> str:
    return re.sub(r"\\(?:text|textbf)\s?\{([^{}]*)\}|[\s]+", r"\1", text).replace(" ", "").casefold()


def _based(match: re.Match[str]) -> str:
    return f"{match[1]}_{match[2] or match[3]}".upper()


def _balanced(text: str) -> bool:
    return text.count("{") == text.count("}") and text.count("\\begin") == text.count("\\end")


def _is_name(side: str) -> bool:
    """Is a side of an equation the name of what is asked for: ``x``, ``f(2)``, ``m\\angle ABC``?"""
    return bool(_NAME.fullmatch(re.sub(r"\([^()]*\)", "", side))) and not _FUNCTION.search(side)


def _to_number(gold: Gold, prediction: str, ask: Ask, evaluated: bool) -> Verdict | Left:
    """Every side of a chain of equalities is the gold, or the name of what is asked for; one side is worked out."""
    items = listed(prediction) if read_number(prediction) is None else None
    if items is not None:
        if items.kind != "set" or len(items.items) != 1:
            return _other_form(gold, prediction)
        prediction = items.items[0]
    sides, done = [side for side in split_at(prediction, "=") if side], False
    strict = evaluated and gold.value.plain
    names = [side for side in sides if read_number(side) is None and _is_name(side)]
    if len(sides) == 1 or len(names) == len(sides):
        names = []
    if gold.name and names and _squeezed(gold.name) not in map(_squeezed, names):
        return Verdict.DIFFERENT
    for side in sides:
        if side in names:
            continue
        number = read_number(side)
        if number is None:
            verdict = _to_unread(gold, side, ask, strict)
            if verdict is not Verdict.EQUAL:
                return verdict
            done = True
        elif not same_number(gold.value, number):
            return Verdict.DIFFERENT
        else:
            done |= not strict or not (number.open or (number.unreduced and not gold.value.ratio))
    return Verdict.EQUAL if done else Left.OPEN if sides else Verdict.DIFFERENT


def _to_unread(gold: Gold, side: str, ask: Ask, strict: bool) -> Verdict | Left:
    """An expression that is no number here, against a number: math-verify's, unless it is left open or has nothing to ask."""
    if not _BEYOND.search(side) or ("\\" not in side and (is_prose(side) or not _DIGIT.search(side))):
        return Verdict.DIFFERENT
    number = rational(gold.value.value)
    verdict = ask(gold.text if number is None else _latex(number), side)
    if verdict is Verdict.EQUAL and strict and _OPERATOR.search(_outside(side)):
        return Left.OPEN
    return verdict


def _latex(number: Fraction) -> str:
    top = str(number.numerator)
    return top if number.denominator == 1 else f"\\frac{{{top}}}{{{number.denominator}}}"


def _outside(text: str) -> str:
    """The text without what stands in braces."""
    for _ in range(20):
        shorter = re.sub(r"\{[^{}]*\}", "0", text)
        if shorter == text:
            break
        text = shorter
    return text


def _squeezed(text: str) -> str:
    return re.sub(r"[\s{}\\]", "", text)


def _other_form(gold: Gold, prediction: str) -> Verdict:
    """A ratio for a fraction; lists are no number."""
    return _verdict(gold.value.ratio and same_ratio(read_ratio(prediction), None, gold.value))


def _to_list(gold: Gold, prediction: str, ask: Ask, evaluated: bool) -> Verdict | Left:
    wanted: Listed = gold.value
    found = listed(prediction)
    ordered = wanted.kind != "set"
    if ordered and (found is None or found.kind == "set"):
        names = [split_at(item, "=")[0] for item in found.items] if found else []
        if found is None or not all("=" in item for item in found.items) or len(set(names)) < len(names):
            return ask(gold.text, prediction) if _RELATION.search(prediction) else Verdict.DIFFERENT
        found = Listed(wanted.kind, found.items)
    if found is None:
        return ask(gold.text, prediction) if _RELATION.search(prediction) else Verdict.DIFFERENT
    if found.kind != wanted.kind or len(found.items) != len(wanted.items):
        return Verdict.DIFFERENT
    left, rest, outcome = list(wanted.items), list(found.items), Verdict.EQUAL
    for item in left:
        for place, other in enumerate(rest[:1] if ordered else rest):
            verdict = compare(read_gold(item), other, ask, evaluated)
            if verdict in (Verdict.EQUAL, Left.OPEN):
                outcome = Left.OPEN if verdict is Left.OPEN else outcome
                del rest[place]
                break
        else:
            return Verdict.DIFFERENT
    return outcome


def _to_formula(gold: Gold, prediction: str, ask: Ask) -> Verdict:
    """By math-verify; of a chain of equalities for an expression every side that is no name."""
    sides = split_at(prediction, "=")
    if len(sides) > 1 and len(split_at(gold.text, "=")) == 1 and not _RELATION.search(gold.text):
        sides = [side for side in sides if side and not _is_name(side)] or sides[-1:]
    else:
        sides = [_as_written(gold.text, prediction)]
    for side in sides:
        verdict = ask(gold.text, side)
        if verdict is not Verdict.EQUAL:
            return verdict
    return Verdict.EQUAL


def _as_written(gold: str, prediction: str) -> str:
    """Rows in brackets, and a vector in angle brackets, as the matrix that the gold is."""
    if "matrix}" not in gold:
        return prediction
    if prediction.startswith("[["):
        rows = re.findall(r"\[([^\[\]]*)\]", prediction)
        return "\\begin{pmatrix}" + "\\\\".join(row.replace(",", "&") for row in rows) + "\\end{pmatrix}"
    vector = re.fullmatch(r"\\langle(.*)\\rangle", prediction)
    return "\\begin{pmatrix}" + "\\\\".join(vector[1].split(",")) + "\\end{pmatrix}" if vector else prediction
