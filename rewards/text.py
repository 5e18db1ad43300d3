"""What a reward reads of a completion and of a prompt."""

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


def user_text(prompt: Any) -> str | None:
    """Text of a prompt: a string, or what the user says in a list of messages. None where there is no such text."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list | tuple):
        return None
    said: list[str] = []
    for message in prompt:
        if isinstance(message, Mapping) and message.get("role") == "user":
            content = message.get("content")
            parts = [{"text": content}] if isinstance(content, str) else content or []
            said += [part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    return "\n".join(said) if said else None
