r"""Where the answer is: one extraction for rewards, held-out accuracy and ``unigrpo check``.

An answer stands behind the last ``</think>``; a thought that never ends has none. In this order it is: the last box,
the last ``<answer></answer>``, a line behind ``####``, what is said to be the answer, the last expression with a number.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

from ._after_thought import after_thought, tagged
from ._notation import ascii_signs
from ._numbers import read_number
from ._ratios import read_ratio
from ._said import is_prose, said_answer


MAX_TEXT = 20_000
"""Characters of a text that are read, counted from its end."""

MAX_EXPRESSION = 1_000
"""A longer answer is no answer."""

_SPECIAL = re.compile(r"(?:<\|[A-Za-z0-9_]{1,30}\|>|</?s>)\Z")
_PLAIN = re.compile(r"\s{0,9}+([-+]?[0-9]{1,40}(?:\.[0-9]{1,40})?+)\s{0,9}+")
_INVISIBLE = re.compile("[\u200b\u200c\u200d\u2060\ufeff]")
_BRACES = re.compile(
    r"(?P<box>\\(?:[bB]oxed|fbox|framebox)\s*+\{)|\\\\(?![bB]oxed|fbox)|\\[{}]|(?P<open>\{)|(?P<close>\})"
)
_BARE_BOX = re.compile(r"\\(?:[bB]oxed|fbox)(?:\s{1,5}|(?=[0-9+-]))([^\s{}\\$]{1,100})")
_LINE = re.compile(r"(?:^|[^#])####(?!#)[ \t]*([^\n]{1,1000})")
_HEADING = re.compile(r"(?:[0-9]{1,2}[.):]\s|[A-Za-z*]+\b)")
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"))


def spoken(text: str, opened: bool = False) -> str:
    """What is said behind the last thought, without special tokens at the end; empty where a thought does not end.

    Args:
        opened: the prompt has opened the thought, so that a text without ``</think>`` is all thought.
    """
    said = (after_thought(text, opened) or "")[-MAX_TEXT:]
    while said.endswith(">") and (special := _SPECIAL.search(said, len(said) - 40 if len(said) > 40 else 0)):
        said = said[: special.start()].rstrip()
    return said


def predicted_answer(text: str, opened: bool = False, several: bool = False) -> str | None:
    """The expression that a completion gives as its answer, or None where it gives none.

    Args:
        opened: see ``spoken``.
        several: the gold is a list: then boxes of one thing each are one list together.
    """
    said = spoken(text, opened)
    plain = _PLAIN.fullmatch(said)
    if plain:
        return plain[1]
    answer, _ = marked_answer(said, several)
    if answer is None:
        answer = _whole(said) or said_answer(said) or _alone(said)
    elif (answer := usable(answer) or "") and is_prose(answer):
        answer = said_answer(answer) or answer
    return None if answer is None else usable(answer)


def _whole(said: str) -> str | None:
    """A number with its dress, or a time, that is all that is said: ``3 hours 20 minutes``."""
    said = said.strip().removesuffix(".")
    if len(said) > 60 or not said[:1].isdigit():
        return None
    return said if read_number(said) is not None or read_ratio(said) is not None else None


def _alone(said: str) -> str | None:
    """A word, a name or a formula that is all that is said."""
    said = said.strip().removesuffix(".")
    return (
        said if 0 < len(said) <= 200 and "\n" not in said and (not is_prose(said) or _NAME.fullmatch(said)) else None
    )


def marked_answer(said: str, several: bool = False) -> tuple[str | None, bool]:
    """What a text marks as its answer, and whether a box does; None where it marks none."""
    boxes = _boxes(said) if "ox" in said else []
    if boxes:
        distinct = list(dict.fromkeys(box.strip() for box in boxes))
        return (", ".join(distinct), True) if several and "," not in boxes[-1] else (boxes[-1], True)
    inside = tagged(said)
    return (_last_line(said) if inside is None else inside), False


def gold_answer(solution: Any) -> str | None:
    r"""The expression that a solution column says is right, or None where it says nothing that can be compared.

    A number, a list of one, or a text: what stands in ``<answer>``, behind ``####``, in the last ``\boxed{}``, or all of
    it. Of a sentence it is what the sentence calls the answer; other prose around a number is none: guessing which number
    is meant would train towards a wrong one.
    """
    if isinstance(solution, list | tuple):
        return gold_answer(solution[0]) if len(solution) == 1 else None
    if isinstance(solution, str):
        return _written_gold(solution)
    if isinstance(solution, bool):
        return None
    if isinstance(solution, Integral):
        return str(int(solution)) if int(solution).bit_length() < 3 * MAX_EXPRESSION else None
    if isinstance(solution, Real):
        return repr(float(solution)) if math.isfinite(solution) else None
    return None


@lru_cache(maxsize=4096)
def _written_gold(solution: str) -> str | None:
    said = spoken(solution)
    _, marker, line = said.rpartition("####")
    text = line.strip().partition("\n")[0] if marker else said
    marked, _ = marked_answer(text)
    answer = usable(text if marked is None else marked)
    if answer is not None and is_prose(answer) and not _NAME.fullmatch(answer):
        answer = said_answer(answer, anchored=True)
    return None if answer is None or _OPTION_OR_VALUE.match(answer) else usable(answer)


_OPTION_OR_VALUE = re.compile(r"[A-Z]: ?[0-9]")
_NAME = re.compile(r"[A-Za-z'-]{1,40}(?: [A-Za-z'-]{1,40}){1,2}")


def usable(answer: str) -> str | None:
    """The answer without the marks around it; None for nothing and for more than ``MAX_EXPRESSION`` characters."""
    answer = _INVISIBLE.sub("", answer).strip() if not answer.isascii() else answer.strip()
    for start, end in _DELIMITERS:
        inner = answer.removeprefix(start).removesuffix(end)
        if len(answer) == len(start) + len(inner) + len(end) and start not in inner:
            answer = inner.strip()
    return answer if 0 < len(answer) <= MAX_EXPRESSION else None


def _boxes(text: str) -> list[str]:
    r"""Contents of the closed boxes, outermost ones left out, in the order of their starts; one pass over the text."""
    opened: list[int | None] = []
    found: list[tuple[int, str]] = []
    for match in _BRACES.finditer(text):
        if match["box"]:
            opened.append(match.end())
        elif match["open"]:
            opened.append(None)
        elif match["close"] and opened:
            start = opened.pop()
            if start is not None and not (found and found[-1][0] > start):
                found.append((start, text[start : match.start()]))
    for bare in _BARE_BOX.finditer(text):
        content = bare[1].rstrip(".,;:!?")
        # A word behind the command is talk about it ("in \boxed form"); a letter is an answer.
        if content and not (len(content) > 1 and content.isalpha()):
            found.append((bare.start(1), content))
    return [content for _, content in sorted(found)]


def _last_line(text: str) -> str | None:
    """What follows ``####``, unless that is a heading: of words behind the number the first number counts."""
    lines = [match[1].strip() for match in _LINE.finditer(text)] if "####" in text else []
    answers = [line for line in lines if line and not _HEADING.match(line)]
    if not answers:
        return None
    answer = answers[-1]
    if read_number(ascii_signs(answer)) is None:
        answer = said_answer(answer, first=True) or answer
    return answer
