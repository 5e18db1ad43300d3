"""Samplers fill a canvas. ``SAMPLERS`` is the one place to add one; the fields of a sampler are its keys.

One of your own is a class named ``pkg.mod:Class`` in a recipe. Its ``tasks`` say what it can answer; without them, everything.
"""

from collections.abc import Callable
from typing import Any

from ..types import KINDS
from .block import Block
from .dream import Dream
from .emerge import Emerge
from .entropy_bound import EntropyBound
from .left_to_right import LeftToRight
from .maskgit import MaskGIT
from .schedules import MASK_SCHEDULES
from .semi_autoregressive import SemiAutoregressive


SAMPLERS: dict[str, Callable] = {
    "semi_autoregressive": SemiAutoregressive,
    "left_to_right": LeftToRight,
    "dream": Dream,
    "block": Block,
    "entropy_bound": EntropyBound,
    "maskgit": MaskGIT,
    "emerge": Emerge,
}


def answers_task(sampler: Callable, task: str) -> bool:
    """Whether a sampler can fill a canvas of ``task``: image samplers know no block, those of text no picture."""
    tasks = getattr(sampler, "tasks", (task,))
    return task in tasks or KINDS.get(task) in tasks


def exact_decoding(sampler: Callable) -> dict[str, Any]:
    """The keys of a sampler with which it takes no shortcut."""
    return dict(getattr(sampler, "exact_decoding", {}))


def samplers_for(task: str) -> dict[str, Callable]:
    """Those of ``SAMPLERS`` that can answer ``task``."""
    return {name: sampler for name, sampler in SAMPLERS.items() if answers_task(sampler, task)}


__all__ = [
    "MASK_SCHEDULES",
    "SAMPLERS",
    "Block",
    "Dream",
    "Emerge",
    "EntropyBound",
    "LeftToRight",
    "MaskGIT",
    "SemiAutoregressive",
    "answers_task",
    "exact_decoding",
    "samplers_for",
]
