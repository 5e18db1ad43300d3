"""Does a completion have the shape that was asked for?"""

from __future__ import annotations

from typing import Any

from .text import completion_text


OPEN, CLOSE = "<think>", "</think>"


def think_format(prompts: list, completions: list, **_: Any) -> list[float | None]:
    """1.0 where the completion is ``<think>`` reasoning ``</think>`` answer, 0.0 where it is not; range {0.0, 1.0}.

    White space around any part is ignored. Each tag occurs exactly once, the completion starts with ``<think>``, and
    neither the reasoning nor the answer is empty. None where a completion is not text. Time is linear in its length.
    """
    texts = [completion_text(completion) for completion in completions]
    return [None if text is None else float(_is_well_formed(text)) for text in texts]


def _is_well_formed(text: str) -> bool:
    text = text.strip()
    if not text.startswith(OPEN) or text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return False
    reasoning, answer = text.removeprefix(OPEN).split(CLOSE)
    return bool(reasoning.strip()) and bool(answer.strip())
