"""Patterns of an adapter from anywhere, tried out in a process that can be ended before PEFT matches them here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any


PATIENCE = 10.0
"""Seconds for all patterns of an adapter on all names of a model; honest ones take milliseconds."""

MEMORY = 2**30
"""Bytes that they may take, where the system can say so."""

SPECIAL = set("*+?{(|[\\")
"""Letters that make a pattern of a name."""

PROGRAM = """
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
except (ImportError, ValueError, OSError):
    pass
patterns, names = json.load(sys.stdin)
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
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", PROGRAM, str(MEMORY)],
            input=json.dumps([patterns, names]),
            text=True,
            capture_output=True,
            timeout=PATIENCE,
        )
        fault = "" if done.returncode == 0 else f"more than {MEMORY / 2**20:.0f} MiB"
    except subprocess.TimeoutExpired:
        fault = f"more than {PATIENCE:g} s"
    if fault:
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
