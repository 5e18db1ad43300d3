"""Patterns of an adapter from anywhere, tried out in a process that can be ended before PEFT matches them here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .trial import taken_by


PATIENCE = 10.0
"""Seconds for all patterns of an adapter on all names of a model; honest ones take milliseconds."""

SPECIAL = set("*+?{(|[\\")
"""Letters that make a pattern of a name."""

PROGRAM = """
import re
patterns, names = given
for pattern in patterns:
    # The ways in which PEFT matches what an adapter asks for.
    for form in (pattern, rf"(.*\\.)?({pattern})$", rf".*\\.[^.]*{pattern}\\.(\\d+)\\."):
        try:
            compiled = re.compile(form)
        except (re.error, OverflowError, RecursionError):
            continue
        for name in names:
            compiled.match(name)
            compiled.fullmatch(name)
"""


def check_patterns(settings: dict[str, Any], names: list[str], where: str) -> None:
    """Raises ``ValueError`` for settings of an adapter with a pattern that takes too long, or too much, on these ``names``."""
    patterns = sorted({text for text in _texts(settings) if SPECIAL & set(text)})
    if not patterns:
        return
    if fault := taken_by(PROGRAM, [patterns, names], PATIENCE):
        shown = max(patterns, key=len)[:80]
        raise ValueError(
            f"{where}: matching its patterns against the {len(names)} modules of the model takes {fault}, such as {shown!r}; "
            "write the names of the modules instead"
        )


def _texts(value: Any) -> Iterator[str]:
    """All strings in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, own in value.items():
            yield from (key, *_texts(own))
    elif isinstance(value, list):
        for own in value:
            yield from _texts(own)
