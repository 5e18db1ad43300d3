"""Lists, sets, tuples and intervals, taken apart at the outermost commas."""

from __future__ import annotations

import re
from typing import NamedTuple


MAX_ITEMS = 50


class Listed(NamedTuple):
    """Items and what holds them: ``set`` where their order says nothing, else the brackets, ``()`` or ``[)``."""

    kind: str
    items: tuple[str, ...]


_OPENING, _CLOSING = "([{", ")]}"
_WORDS = re.compile(r",?\s?\\text\s?\{[ ,]*(?:and|or)[ ,]*\}\s?|,?\s(?:and|or)\s")
_GROUPED = re.compile(r"(?<![0-9])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")


def split_at(text: str, signs: str) -> list[str]:
    """The parts of a text between ``signs`` that stand in no bracket, stripped; one part where there is none."""
    parts, depth, start = [], 0, 0
    for place, sign in enumerate(text):
        if sign in _OPENING:
            depth += 1
        elif sign in _CLOSING:
            depth -= 1
        elif sign in signs and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [*parts, text[start:].strip()]


def listed(text: str) -> Listed | None:
    r"""What a text lists, with ``\pm`` as two items; None for a single thing. Thousands commas do not list."""
    inner, kind = text.strip(), "set"
    if inner.startswith("\\{") and inner.endswith("\\}") and _closes(inner[1:-2] + "}"):
        inner = inner[2:-2]
    elif inner[:1] in ("(", "[") and inner[-1:] in (")", "]") and _closes(inner):
        inner, kind = inner[1:-1], inner[0] + inner[-1]
    if inner.count("\\pm") == 1 and kind == "set" and not split_at(inner, ",;")[1:]:
        return Listed(
            "set", tuple(re.sub(r"\\pm ?", sign, inner).replace("\\mp", other) for sign, other in ("+-", "-+"))
        )
    items = tuple(item for item in split_at(_WORDS.sub(",", inner), ",;") if item)
    if len(items) > MAX_ITEMS or (len(items) < 2 and inner is text.strip()):
        return None
    if len(items) < 2 and kind != "set":
        return None
    if _GROUPED.fullmatch(inner):
        return None if kind == "set" and inner == text.strip() else Listed(kind, (inner,))
    return Listed(kind, items)


def _closes(text: str) -> bool:
    """Does the bracket that a text begins with close at its end?"""
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign in _OPENING) - (sign in _CLOSING)
        if depth == 0:
            return place == len(text) - 1
    return False
