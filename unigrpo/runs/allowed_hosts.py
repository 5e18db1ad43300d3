"""Hosts that may get a key: said on the command line, never by a recipe."""

from __future__ import annotations

import re
from typing import Any

from ..errors import RecipeError
from .bounded_yaml import quoted


def refuse_hosts(data: dict[str, Any], source: str) -> None:
    """Raises ``RecipeError`` for a recipe's file that has ``allow_hosts``."""
    if "allow_hosts" in data:
        raise RecipeError(
            f"{source}: allow_hosts belongs on the command line: a recipe must not say who gets your keys"
        )


def read_hosts(given: Any) -> tuple[str, ...]:
    """One name or a list of names, with or without a port.

    Raises:
        RecipeError: anything else.
    """
    given = [given] if isinstance(given, str) else given
    wrong = (
        next((own for own in given if not re.fullmatch(r"[\w.:-]+", str(own))), None)
        if isinstance(given, list)
        else given
    )
    if wrong is not None:
        raise RecipeError(
            f"allow_hosts={quoted(wrong)} must be names of hosts, such as [api.example.com] or [10.0.0.5:8000]"
        )
    return tuple(str(own).lower() for own in given)
