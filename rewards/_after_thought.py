"""What a completion answers, apart from what it thought."""

from __future__ import annotations

import re

from .format import CLOSE, OPEN


_FENCED = re.compile(r"^```[^`\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


def after_thought(text: str) -> str | None:
    """What stands behind the last ``</think>``, without white space around it; all of a text without thoughts.

    None for a thought that never ends: it has no answer. Time is linear in the length of the text.
    """
    said = text.rpartition(CLOSE)[2]
    return None if OPEN in said else said.strip()


def marked_answer(said: str) -> str:
    """The content of the last ``<answer></answer>``, else all that is said; without white space around it."""
    end = said.rfind("</answer>")
    start = said.rfind("<answer>", 0, max(end, 0))
    return said if start < 0 else said[start + len("<answer>") : end].strip()


def last_fenced(said: str) -> str:
    """The content of the last block fenced by three backticks, else all that is said."""
    blocks = _FENCED.findall(said)
    return blocks[-1] if blocks else said
