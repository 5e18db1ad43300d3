"""What a completion answers, apart from what it thought."""

from __future__ import annotations

import re


OPEN, CLOSE = "<think>", "</think>"

_FENCED = re.compile(r"^```[^`\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


def after_thought(text: str, opened: bool = False) -> str | None:
    """What stands behind the last ``</think>``, without white space around it; all of a text without thoughts.

    None for a thought that never ends: it has no answer. Time is linear in the length of the text.

    Args:
        opened: the prompt has opened the thought, so that a text without ``</think>`` is all thought.
    """
    _, closed, said = text.rpartition(CLOSE)
    return None if OPEN in said or (opened and not closed) else said.strip()


def tagged(said: str) -> str | None:
    """The content of the last ``<answer></answer>``, without white space around it; None where there is none."""
    end = said.rfind("</answer>")
    start = said.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else said[start + len("<answer>") : end].strip()


def tagged_or_all(said: str) -> str:
    """The content of the last ``<answer></answer>``, else all that is said."""
    inside = tagged(said)
    return said if inside is None else inside


def last_fenced(said: str) -> str:
    """The content of the last block fenced by three backticks, else all that is said."""
    blocks = _FENCED.findall(said)
    return blocks[-1] if blocks else said
