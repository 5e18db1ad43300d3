"""Lessons of the emoji world: pictures to draw, by a teacher that is right or one that errs.

The teacher that errs names another emoji with a fixed chance. A policy learns the mistakes with their frequency, so that at
temperature 1 it starts well below what it knows. No lesson has a held-out caption or picture, not by mistake either.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from . import emoji
from .emoji import NAMES, SPLITS, Scene


WRONG_NAME = 0.25
"""Chance that the careless teacher draws a name of a caption again."""

GALLERY = 5000
"""Pictures of a split, shared by all lessons: so few that their codes stay in memory."""


def pictures(split: str, n: int | None = None, seed: int = 0, wrong: float = 0.0) -> list[dict[str, Any]]:
    """Rows of task ``t2i`` with an ``image`` each, drawn from ``gallery``.

    Args:
        n: number of rows; None = ``GALLERY``.
        wrong: chance that a name of the caption is drawn again.

    Returns:
        the dictionaries of ``emoji.problems``, of the scene that the caption says, and ``image``.
    """
    rng, drawn = random.Random(f"emoji lessons/{split}/{seed}"), gallery(split, seed)
    rows = []
    for _ in range(GALLERY if n is None else n):
        scene, image = rng.choice(drawn)
        rows.append({**emoji.row(_mistaken(scene, wrong, rng)), "image": image})
    return rows


def careless_pictures(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """``pictures`` with ``WRONG_NAME`` of the names drawn again."""
    return pictures(split, n, seed, WRONG_NAME)


@cache
def gallery(split: str, seed: int = 0) -> list[tuple[Scene, Any]]:
    """``GALLERY`` scenes of a split by ``emoji.SHARES``, and a picture of each.

    Raises:
        ValueError: ``split`` is not one of ``SPLITS``.
    """
    emoji.scenes(split)
    rng = np.random.default_rng([SPLITS.index(split), seed])
    members = [emoji.some_scene(split, rng) for _ in range(GALLERY)]
    return [(scene, emoji.render(scene, rng)) for scene in members]


def _mistaken(scene: Scene, chance: float, rng: random.Random) -> Scene:
    """``scene`` with names drawn again, until it is another of the same split or nothing has been drawn again."""
    while True:
        first, second = (
            rng.choice(NAMES) if name and rng.random() < chance else name for name in (scene.first, scene.second)
        )
        said = replace(scene, first=first, second=second)
        if first != second and emoji.split_of(said) == emoji.split_of(scene):
            return said
