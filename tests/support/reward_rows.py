"""Rows for ``check_reward``."""

from __future__ import annotations

from PIL import Image


RED = Image.new("RGB", (8, 8), "red")


def answers(*completions, prompt="p", **columns):
    """One row a completion; a column's values go by row."""
    rows = [{"prompt": prompt, "completion": own} for own in completions]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def read_colour(picture):
    """A reader for ``ocr``: it reads "red" in a red picture, and noise in others."""
    return "red" if picture.getpixel((0, 0)) == (255, 0, 0) else "?"
