"""What of a call a reward takes: TRL's protocol hands every reward everything, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any


OF_A_CALL = (
    "prompts",
    "completions",
    "completion_ids",
    "task",
    "images",
    "thoughts",
    "trainer_state",
    "log_extra",
    "log_metric",
)
"""Arguments that are no columns of the dataset."""

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def taken(function: Callable, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of ``arguments`` that ``function`` takes by name; all of them for one with ``**kwargs``, or that does not say.

    One that names ``image`` gets the first of each row's ``images``, or None: TRL's column for rows with one picture. One that
    names ``thoughts`` gets them as None where no answer of the call has any. What a partial has bound stays as it is, also where a
    column has that name.

    Raises:
        TypeError: it needs a column that the dataset does not have.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return arguments
    named = {own.name: own for own in parameters if own.kind in NAMED}
    if "image" in named and "image" not in arguments:
        arguments = {**arguments, "image": [own[0] if own else None for own in arguments["images"]]}
    if "thoughts" in named and "thoughts" not in arguments:
        arguments = {**arguments, "thoughts": [None] * len(arguments["completions"])}
    for name, own in named.items():
        if own.default is inspect.Parameter.empty and name not in arguments:
            columns = sorted(set(arguments) - {*OF_A_CALL, "image"})
            raise TypeError(
                f"it takes {name!r}, which is neither a column of the dataset ({columns}) nor an argument of rewards "
                f"({list(OF_A_CALL)}): rename the column, or give it a default"
            )
    takes_all = any(own.kind is inspect.Parameter.VAR_KEYWORD for own in parameters)
    bound = function.keywords if isinstance(function, partial) else {}
    wanted = {name: value for name, value in arguments.items() if name not in bound}
    return wanted if takes_all else {name: value for name, value in wanted.items() if name in named}


def columns_read(reward: Any) -> list[str]:
    """Columns of the dataset without which a reward cannot be called: its arguments by name that have no default."""
    try:
        parameters = inspect.signature(getattr(reward, "reward", reward)).parameters.values()
    except (TypeError, ValueError):
        return []
    needed = (own.name for own in parameters if own.kind in NAMED and own.default is inspect.Parameter.empty)
    return [name for name in needed if name not in (*OF_A_CALL, "image")]


def reads_messages(function: Any) -> bool:
    """Whether it is one of ``trl.rewards``, which were written for conversations."""
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "reward", function)
    home = getattr(function, "__module__", None) or type(function).__module__
    return home.split(".")[:2] == ["trl", "rewards"]


def as_messages(text: Any, role: str) -> Any:
    """A text as a conversation of one message; a conversation and a picture as they are."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text
