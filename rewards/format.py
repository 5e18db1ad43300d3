"""Does a completion have the shape that was asked for?"""

from __future__ import annotations

import re
from typing import Any

from ._after_thought import CLOSE, OPEN
from ._answers import spoken
from .text import completion_text


_TAGS = re.compile(r"</?answer>|[\s\u200b\u200c\u200d\u2060\ufeff]+")


def think_format(prompts: list, completions: list, *, opened: bool = False, **_: Any) -> list[float | None]:
    """1.0 where the completion is ``<think>`` reasoning ``</think>`` answer, 0.0 where it is not; range {0.0, 1.0}.

    White space around any part is ignored. Each tag occurs exactly once, the completion starts with ``<think>``, and
    neither the reasoning nor the answer is empty: invisible characters, special tokens such as ``<|eot_id|>`` and an
    ``<answer>`` with nothing in it are no answer. None where a completion is not text. Time is linear in its length.

    Args:
        opened: the prompt ends in ``<think>``: the completion starts with the reasoning, and has the closing tag alone.
    """
    texts = [completion_text(completion) for completion in completions]
    return [None if text is None else float(_is_well_formed(text, opened)) for text in texts]


def _is_well_formed(text: str, opened: bool) -> bool:
    text = text.strip()
    if not opened and not text.startswith(OPEN):
        return False
    if text.count(OPEN) != (not opened) or text.count(CLOSE) != 1:
        return False
    reasoning = text.removeprefix(OPEN).partition(CLOSE)[0]
    return all(_TAGS.sub("", part) for part in (reasoning, spoken(text, opened)))
