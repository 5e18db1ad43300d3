"""Reward functions by name. A reward is a file of this package and a line of ``REWARDS``; see README.md."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any


REWARDS: dict[str, str] = {
    "answer_correctness": "rewards.answers:answer_correctness",
    "clip_score": "rewards.clip:ClipScore",
    "colour": "rewards.pixels:colour",
    "countdown": "rewards.puzzles:countdown",
    "image_reward": "rewards.imagereward:ImageReward",
    "jpeg_size": "rewards.pixels:jpeg_size",
    "judge": "rewards._judge:JudgeReward",
    "math_correctness": "rewards.math:math_correctness",
    "remote": "rewards._remote:RemoteReward",
    "sudoku": "rewards.puzzles:sudoku",
    "think_format": "rewards.format:think_format",
}
"""Name of a reward -> where it lives, as ``module:attribute``. A module is imported when its reward is asked for."""


def get_reward(name: str, **kwargs: Any) -> Callable:
    """The reward behind a name of ``REWARDS`` or a ``pkg.mod:attr`` path.

    Without ``kwargs`` the object itself: a function, or a class as it is. With ``kwargs`` a class is instantiated with
    them and any other callable is bound to them with ``functools.partial``.

    A registered name always leads to a reward that can be called: where a class stands behind it, to the one instance
    with its defaults, whose model is then loaded once per process.

    Raises:
        ValueError: nothing callable by that name; the message has the nearest name and all names.
        ImportError: the module exists and one of its own imports does not.
    """
    reward = _resolve(REWARDS.get(name, name) if isinstance(name, str) else "", name)
    if not kwargs:
        return _with_defaults(reward) if name in REWARDS and isinstance(reward, type) else reward
    return reward(**kwargs) if isinstance(reward, type) else partial(reward, **kwargs)


@cache
def _with_defaults(kind: type) -> Callable:
    return kind()


def _resolve(path: str, name: Any) -> Callable:
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise _unknown(name, "it is neither a registered name nor a 'pkg.mod:attr' path")
    try:
        reward = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A dependency that is missing inside an existing module is another problem, with its own message.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise _unknown(name, f"there is no module {error.name!r}") from error
    for part in attribute.split("."):
        if not hasattr(reward, part):
            raise _unknown(name, f"{module_name!r} has no attribute {attribute!r}", dir(reward))
        reward = getattr(reward, part)
    if not callable(reward):
        raise _unknown(name, f"it is a {type(reward).__name__}, which cannot be called")
    return reward


def _unknown(name: Any, reason: str, nearby: list[str] | None = None) -> ValueError:
    """The error for a name that leads nowhere; ``nearby`` are attribute names of the module that was found."""
    module_name, _, attribute = str(name).partition(":")
    nearest = [f"{module_name}:{near}" for near in difflib.get_close_matches(attribute, nearby or [], n=1)]
    nearest = nearest or difflib.get_close_matches(str(name), REWARDS, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return ValueError(f"unknown reward {name!r}: {reason}.{hint} Registered names: {', '.join(sorted(REWARDS))}.")


def __getattr__(name: str) -> Callable:
    if name in REWARDS:
        return get_reward(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *REWARDS})
