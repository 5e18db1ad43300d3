"""A text with names in braces. Names stand for values, and nothing in a value is looked at again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from typing import Any


# Doubled braces first, so that what is between them is no name.
_PART = re.compile(r"\{\{([^{}]*)\}\}|\{([A-Za-z_]\w*)\}")
_LOOKS_INTO = re.compile(r"\{[A-Za-z_]\w*\s*[.\[!:][^{}]*\}")


class Template:
    """``{name}`` stands for a value, ``{{text}}`` for ``{text}``; any other brace is itself.

    Attributes:
        names: the names in it.

    Raises:
        ValueError: no text, or an expression such as ``{name.attribute}``, which would stay as it is.
    """

    def __init__(self, owner: str, text: str) -> None:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{owner}: template must be a text such as 'Rate: {{completion}}', got {text!r}")
        if found := _LOOKS_INTO.search(_PART.sub("", text)):
            raise ValueError(
                f"{owner}: template has {found[0]!r}: only a plain {{name}} stands for a value. Double the braces to "
                "have it as it is."
            )
        self.owner, self.text = owner, text
        self.names = {found[2] for found in _PART.finditer(text) if found[2]}

    def check(self, known: Set[str]) -> None:
        """Raises ValueError where a name is not among ``known``."""
        if unknown := sorted(self.names - known):
            raise ValueError(
                f"{self.owner}: template has {', '.join(f'{{{name}}}' for name in unknown)}, and neither it nor the "
                f"dataset has that. There is: {', '.join(sorted(known))}. Double the braces to have it as it is."
            )

    def fill(self, values: Mapping[str, Any]) -> str | None:
        """The text with values in place of names; None where one of them is None."""
        texts = {name: _text(values[name]) for name in self.names}
        if None in texts.values():
            return None
        return _PART.sub(lambda found: texts[found[2]] if found[2] else f"{{{found[1]}}}", self.text)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else str(value)


def prompt_text(prompt: Any) -> str | None:
    """The text of a prompt: a string, of one message its text, of more of them ``role: text`` paragraphs."""
    if prompt is None or isinstance(prompt, str):
        return prompt
    texts = [(message.get("role"), _message_text(message.get("content"))) for message in prompt]
    return texts[0][1] if len(texts) == 1 else "\n\n".join(f"{role}: {text}" for role, text in texts)


def _message_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or [] if isinstance(part, Mapping) and "text" in part)
