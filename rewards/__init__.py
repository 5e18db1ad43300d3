"""Reward functions by name, ``unigrpo.rewards``. A reward is a file of this folder and a line of ``REWARDS``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..errors import import_named


REWARDS: dict[str, str] = {
    "aesthetic": "unigrpo.rewards.aesthetics:Aesthetic",
    "answer_correctness": "unigrpo.rewards.answers:answer_correctness",
    "clip_score": "unigrpo.rewards.clip:ClipScore",
    "code_tests": "unigrpo.rewards.programs:CodeTests",
    "colour": "unigrpo.rewards.pixels:colour",
    "countdown": "unigrpo.rewards.puzzles:countdown",
    "exact_match": "unigrpo.rewards.exact:ExactMatch",
    "hps_v2": "unigrpo.rewards.preferences:HpsV2",
    "image_reward": "unigrpo.rewards.imagereward:ImageReward",
    "jpeg_size": "unigrpo.rewards.pixels:jpeg_size",
    "json_schema": "unigrpo.rewards.schemas:JsonSchema",
    "judge": "unigrpo.rewards._judge:JudgeReward",
    "length": "unigrpo.rewards.lengths:Length",
    "math_correctness": "unigrpo.rewards.math:math_correctness",
    "multiple_choice": "unigrpo.rewards.exact:multiple_choice",
    "object_check": "unigrpo.rewards.objects:ObjectCheck",
    "ocr": "unigrpo.rewards._ocr:Ocr",
    "pick_score": "unigrpo.rewards.preferences:PickScore",
    "pixel_similarity": "unigrpo.rewards.pixels:pixel_similarity",
    "pairwise_judge": "unigrpo.rewards.pairwise:PairwiseJudge",
    "reasoning_gym": "unigrpo.rewards.gym:ReasoningGym",
    "regex": "unigrpo.rewards.patterns:RegexReward",
    "remote": "unigrpo.rewards._remote:RemoteReward",
    "repetition": "unigrpo.rewards.lengths:Repetition",
    "reward_model_server": "unigrpo.rewards.reward_models:RewardModelServer",
    "siglip_score": "unigrpo.rewards.siglip:SiglipScore",
    "soft_tifa": "unigrpo.rewards.vqa:SoftTifa",
    "sudoku": "unigrpo.rewards.puzzles:sudoku",
    "tag_count": "unigrpo.rewards.tags:TagCount",
    "think_format": "unigrpo.rewards.format:think_format",
    "vqa_score": "unigrpo.rewards.vqa:VqaScore",
}
"""Name of a reward -> where it lives, as ``module:attribute``. A module is imported when its reward is asked for."""


def get_reward(name: str, folders: Sequence[str | Path] = (), /, **kwargs: Any) -> Callable:
    """The reward behind a name of ``REWARDS`` or a ``pkg.mod:attr`` path.

    Without ``kwargs`` the object itself: a function, or a class as it is. With ``kwargs`` a class is instantiated with
    them and any other callable is bound to them with ``functools.partial``.

    A registered name always leads to a reward that can be called: where a class stands behind it, to the one instance
    with its defaults, whose model is then loaded once per process.

    Args:
        folders: where the module of a path is looked for first, before the current folder and the installed packages; that of
            an argument too which names code, one of the class's ``NAMES_CODE``.

    Raises:
        ValueError: nothing callable by that name; the message says where it was looked for, or has the nearest name and all
            names.
        TypeError: an argument that the class does not have.
    """
    registered = isinstance(name, str) and name in REWARDS
    if not registered and not (isinstance(name, str) and ":" in name):
        raise _unknown(name, "it is neither a registered name nor a 'pkg.mod:attr' path")
    try:
        reward = import_named(REWARDS[name] if registered else name, folders)
    except ValueError as error:
        raise _unknown(name, str(error)) from error
    if not callable(reward):
        raise _unknown(name, f"it is a {type(reward).__name__}, which cannot be called")
    for key in getattr(reward, "NAMES_CODE", ()):
        if isinstance(kwargs.get(key), str):
            kwargs[key] = import_named(kwargs[key], folders)
    _check_arguments(name, reward, kwargs)
    if not kwargs:
        return _with_defaults(reward) if registered and isinstance(reward, type) else reward
    return reward(**kwargs) if isinstance(reward, type) else partial(reward, **kwargs)


def _check_arguments(name: str, reward: Callable, given: Mapping[str, Any]) -> None:
    """Raises ``TypeError`` with the nearest name for an argument that a class does not have, its bases' own among them."""
    if not isinstance(reward, type):
        return
    known: list[str] = []
    for kind in reward.__mro__[:-1]:
        taken = list(inspect.signature(kind).parameters.values()) if "__init__" in vars(kind) else []
        # What comes first in a base's list is what the class itself hands on.
        known += [
            own.name
            for own in taken
            if own.kind is own.KEYWORD_ONLY or (own.kind is own.POSITIONAL_OR_KEYWORD and not known)
        ]
        if taken and not any(own.kind is own.VAR_KEYWORD for own in taken):
            break
    else:
        return
    for word in given:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise TypeError(f"{name!r} has no argument {word!r}: {hint}choose among {list(dict.fromkeys(known))}")


@cache
def _with_defaults(kind: type) -> Callable:
    return kind()


def _unknown(name: Any, reason: str) -> ValueError:
    """The error for a name that leads nowhere."""
    if isinstance(name, str) and (":" in name or "/" in name):
        return ValueError(f"reward {name!r}: {reason}")
    nearest = difflib.get_close_matches(str(name), REWARDS, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return ValueError(f"unknown reward {name!r}: {reason}.{hint} Registered names: {', '.join(sorted(REWARDS))}.")


def __getattr__(name: str) -> Callable:
    if name in REWARDS:
        return get_reward(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *REWARDS})
