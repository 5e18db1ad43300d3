"""What a text reward reads of a completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def completion_text(completion: Any) -> str | None:
    """Text of a completion: a string, or the one message of a chat answer, ``[{"role": ..., "content": str}]``.

    None for anything else, such as an image: a text reward then does not apply and returns None for that row.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list | tuple) and len(completion) == 1 and isinstance(completion[0], Mapping):
        content = completion[0].get("content")
        return content if isinstance(content, str) else None
    return None
