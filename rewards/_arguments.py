"""Arguments and columns of rewards, and what is said of those that are wrong."""

from __future__ import annotations

import math
from typing import Any


def check(right: Any, reward: str, argument: str, value: Any, must_be: str) -> None:
    """Raises ``ValueError`` unless ``right``."""
    if not right:
        raise ValueError(f"{reward}: {argument} must be {must_be}, got {_shown(value)}")


def is_whole(value: Any, least: int) -> bool:
    """Whether it is a whole number of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_positive(value: Any) -> bool:
    """Whether it is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def column(reward: str, name: str, values: list | None, texts: list[str | None]) -> list:
    """A column that the reward needs, one value for each of ``texts``.

    Raises:
        ValueError: there is a text, and no such column.
    """
    if values is not None:
        return values
    if any(text is not None for text in texts):
        raise ValueError(f"{reward} needs a `{name}` column in the dataset, and there is none")
    return [None] * len(texts)


def wrong_value(reward: str, name: str, value: Any, cure: str) -> ValueError:
    """The error for a value of a column."""
    return ValueError(f"{reward}: column `{name}` has {_shown(value)}; give {cure}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + " …"
