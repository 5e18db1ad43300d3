"""Where the answer is in a completion, and in the solution column of a dataset."""

from __future__ import annotations

import math
import re
from numbers import Integral, Real
from typing import Any

from ._numbers import last_number, read_number


MAX_TEXT = 20_000
"""Characters of a text that are read, counted from its end."""

MAX_EXPRESSION = 1_000
"""A longer answer is no answer."""

_BRACES = re.compile(r"(?P<boxed>\\boxed\s*+\{)|\\\\(?!boxed)|\\[{}]|(?P<open>\{)|(?P<close>\})")
_WORD = re.compile(r"(?<![A-Za-z])[A-Za-z]{2,}+")
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"))


def predicted_answer(text: str) -> str | None:
    """The expression that a completion gives as its answer, or None where it gives none.

    In this order: the last closed ``\\boxed{}``; the last ``<answer></answer>``, of which the last number where it is
    prose; the last number, so one after ``</think>`` before one inside the reasoning.
    """
    text = text[-MAX_TEXT:]
    answer = _last_boxed(text)
    if answer is None:
        answer = _last_tagged(text)
        if answer is not None and _is_prose(answer):
            answer = last_number(answer) or answer
    if answer is None:
        answer = last_number(text)
    return None if answer is None else _usable(answer)


def gold_answer(solution: Any) -> str | None:
    """The expression that a solution column says is right, or None where it says nothing that can be compared.

    A number, or a text: what follows ``####`` on its line, else the last ``\\boxed{}``, else all of it. Prose around a
    number is not an answer: guessing which number is meant would train towards a wrong one.
    """
    if isinstance(solution, bool):
        return None
    if isinstance(solution, Integral):
        return str(int(solution)) if int(solution).bit_length() < 3 * MAX_EXPRESSION else None
    if isinstance(solution, Real):
        return repr(float(solution)) if math.isfinite(solution) else None
    if not isinstance(solution, str):
        return None
    text = solution[-MAX_TEXT:]
    _, marker, answer = text.rpartition("####")
    if marker:
        text = answer.strip().partition("\n")[0]
    boxed = _last_boxed(text)
    answer = _usable(text if boxed is None else boxed)
    return None if answer is None or _is_prose(answer) else answer


def _usable(answer: str) -> str | None:
    """The answer without the marks around it; None for nothing and for more than ``MAX_EXPRESSION`` characters."""
    answer = answer.strip()
    for start, end in _DELIMITERS:
        inner = answer.removeprefix(start).removesuffix(end)
        if len(answer) == len(start) + len(inner) + len(end) and start not in inner:
            answer = inner.strip()
    return answer if 0 < len(answer) <= MAX_EXPRESSION else None


def _is_prose(answer: str) -> bool:
    """Two words or more, no LaTeX, and not simply a number with a unit."""
    return "\\" not in answer and len(_WORD.findall(answer)) > 1 and read_number(answer) is None


def _last_boxed(text: str) -> str | None:
    """Content of the ``\\boxed{}`` that starts last among those that are closed; one pass over the text."""
    opened: list[int | None] = []
    best: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        if match["boxed"]:
            opened.append(match.end())
        elif match["open"]:
            opened.append(None)
        elif match["close"] and opened:
            start = opened.pop()
            if start is not None and (best is None or start > best[0]):
                best = start, match.start()
    return None if best is None else text[best[0] : best[1]]


def _last_tagged(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else text[start + len("<answer>") : end]
