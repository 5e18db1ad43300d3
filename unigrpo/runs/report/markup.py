"""Words to HTML. Everything a model, a dataset or a path says is text here, never markup, and stays inside its own element."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

from ...terminal import middle_out, visible


WHOLE = 1500
"""Characters of a text that are shown; of a longer one the beginning and the end."""


def text_of(value: Any) -> str:
    """A cell as text; of a conversation its messages under their roles."""
    if not isinstance(value, list):
        return str(value)
    # Heavy, and hardly ever needed.
    from ...training.completions import words

    return words(value)


def escaped(value: Any) -> str:
    """A text for an element or a quoted attribute, its control characters written out, without secrets."""
    return html.escape(visible(text_of(value)))


def said(value: Any) -> str:
    """A text of a model or a dataset: its own direction of writing ends with it."""
    return f'<bdi class="said">{escaped(middle_out(text_of(value), WHOLE))}</bdi>'


def table(head: Iterable[Any], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """A table that scrolls in itself; ``head`` is escaped, cells are HTML already."""
    names = "".join(f"<th scope=col>{escaped(name)}</th>" for name in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide" tabindex="0"><table class="{kind}"><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table></div>'


def pairs(values: dict[str, Any]) -> str:
    """Names and values; what is nested gets names with dots."""
    rows = [(f"<code>{escaped(name)}</code>", said(_value(value))) for name, value in flat(values)]
    return table(("key", "value"), rows, "pairs")


def _value(value: Any) -> Any:
    if isinstance(value, list) and not any(isinstance(own, dict | list) for own in value):
        return ", ".join(map(str, value)) or "none"
    return json.dumps(value) if isinstance(value, dict | list) else "none" if value is None else value


def flat(values: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves of nested mappings by dotted names."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def section(title: str, *parts: str, note: str = "") -> str:
    """A part of the page; with neither parts nor a note it is left out."""
    body = "".join(parts)
    if not body and not note:
        return ""
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{escaped(title)}</h2>{body}{note}</section>\n"


def folded(title: str, body: str) -> str:
    """A part of the page that opens at a click."""
    return f"<section><details><summary><h2>{escaped(title)}</h2></summary>{body}</details></section>\n"
