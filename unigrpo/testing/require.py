"""How the checks complain."""

from __future__ import annotations

from typing import Any


def require(holds: Any, sentence: str) -> None:
    """Raises ``AssertionError`` with ``sentence`` unless ``holds``; unlike ``assert`` also under ``python -O``."""
    if not bool(holds):
        raise AssertionError(sentence)


def first(places: Any) -> str:
    """``row 1, position 7`` for the first True of ``places [B, L]``."""
    row, position = places.nonzero()[0].tolist()
    return f"row {row}, position {position}"
