"""Texts that a terminal, or rich, would obey."""

from __future__ import annotations

import re
import unicodedata


ESCAPES = {
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "title": "\x1b]0;owned\x07",
    "clear screen": "\x1b[2J\x1b[H",
    "colour": "\x1b[31mred\x1b[0m",
    "C1": "\x9b2J\x9d0;owned\x9c",
    "carriage return": "right\rwrong",
    "backspace": "no\x08\x08yes",
    "bidi override": "\u202egnp.exe\u202c",
    "bidi isolate": "\u2066a\u2069",
    "line separator": "a\u2028b",
    "tag": "\U000e0041",
    "lone surrogate": "\ud800",
    "delete": "a\x7fb",
}
MARKUP = {"closing": "x[/y]", "style": "[bold red]x[/]", "link": "[link=http://evil]x[/link]", "emoji": ":smile:"}
TEXTS = {**ESCAPES, **MARKUP}


def unstyled(shown: str) -> str:
    """Printed text without the colours that rich itself has set."""
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


def obeyed(shown: str) -> list[str]:
    """The characters of printed text that a terminal would obey or not show."""
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return [char for char in unstyled(shown) if unicodedata.category(char) in hidden and char != "\n"]
