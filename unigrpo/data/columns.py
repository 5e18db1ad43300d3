"""Columns under other names than ours: what is probably meant, to be proposed and never assumed."""

from __future__ import annotations

from collections.abc import Collection


OTHERS = {
    "prompt": ("question", "problem", "query", "instruction", "input", "caption", "text", "txt"),
    "solution": ("answer", "ground_truth", "target", "output", "response", "label"),
    "completion": ("answer", "response", "output", "target", "chosen", "solution"),
    "image": ("jpg", "png", "jpeg", "webp", "picture", "img", "image_path", "file_name"),
}
"""Our columns, and names that others give them, the more telling first."""


def meant(columns: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """``{ours: theirs}`` for those of ``wanted`` that are not there, where a column of another name looks like it.

    Nothing is proposed for rows that keep a question in two columns, ``instruction`` and ``input``.
    """
    if {"instruction", "input"} <= set(columns):
        return {}
    found: dict[str, str] = {}
    for ours in wanted:
        free = [own for own in OTHERS[ours] if own in columns and own not in found.values()]
        if ours not in columns and free:
            found[ours] = free[0]
    return found


def as_mapping(found: dict[str, str]) -> str:
    """``found`` as it is written in a recipe: ``{prompt: question}``."""
    return "{" + ", ".join(f"{ours}: {theirs}" for ours, theirs in found.items()) + "}"


def as_renaming(found: dict[str, str]) -> str:
    """``found`` as ``datasets`` takes it: ``rename_columns({'question': 'prompt'})``."""
    return f"rename_columns({ {theirs: ours for ours, theirs in found.items()} })"
