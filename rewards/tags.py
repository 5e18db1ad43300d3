"""Are the tags that were asked for there, each once?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ._after_thought import CLOSE
from ._arguments import check
from .text import completion_text


_NAME = re.compile(r"[A-Za-z_][\w.-]{0,63}")


class TagCount:
    """Share of the tags that a completion holds exactly once; range [0, 1].

    Of each name the opening tag counts one half, and the closing tag the other, where it stands behind the opening one.
    ``<think>`` and ``</think>`` are counted in all of the completion, other tags behind the last ``</think>`` only: what a
    thought holds of them is no answer. None where a completion is not text. Time is linear in its length.

    Args:
        tags: names without brackets, at most 16, each once.

    Raises:
        ValueError: ``tags`` is no such list.
    """

    __name__ = "tag_count"

    def __init__(self, tags: Sequence[str] = ("think", "answer")) -> None:
        right = isinstance(tags, list | tuple) and 0 < len(tags) <= 16 and all(isinstance(tag, str) for tag in tags)
        right = right and len(set(tags)) == len(tags) and all(_NAME.fullmatch(tag) for tag in tags)
        check(right, self.__name__, "tags", tags, "a list of 1 to 16 names, each once, such as ['think', 'answer']")
        self.tags = tuple(tags)

    def __call__(self, prompts: list, completions: list, **_: Any) -> list[float | None]:
        """One score a row."""
        texts = [completion_text(completion) for completion in completions]
        return [None if text is None else self._share(text) for text in texts]

    def _share(self, text: str) -> float:
        said, once = text.rpartition(CLOSE)[2], 0
        for tag in self.tags:
            where = text if tag == "think" else said
            start, end = f"<{tag}>", f"</{tag}>"
            once += where.count(start) == 1
            once += where.count(end) == 1 and 0 <= where.find(start) < where.find(end)
        return once / (2 * len(self.tags))
