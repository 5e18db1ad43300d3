"""Reads a picture of the emoji world from its pixels alone, without any model: the independent measure of accuracy.

Each place where an emoji can stand is compared with every sprite, moved by up to a quarter of a pixel. It is a nearest match: a blur is
still read as something. So the distance is part of what is seen, and a picture counts as clear only below ``CLEAR``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .emoji import GROUND, NAMES, RELATIONS, SIDE, SLOT, Scene, caption, drawn


SHIFTS = tuple(product((-0.25, 0.0, 0.25), repeat=2))

LAYOUTS = ("alone", "left of", "above")
"""Two of a kind stand as one left of the other."""

CLEAR = 0.04
"""Largest error of a clear picture. The two sprites that are most alike are 0.084 apart."""

ALIKE = 3
"""So many sprites next to one, by distance, are its look-alikes."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The scene that a picture shows best, and its ``error``: mean squared difference where emoji stand, pixels in [-1, 1]."""

    scene: Scene
    error: float


def inspect(image: Image.Image) -> Seen:
    """What the picture shows.

    Raises:
        ValueError: ``image`` is not 48 x 48; sprites are compared at that size.
    """
    if image.size != (SIDE, SIDE):
        raise ValueError(f"image.size={image.size}: the checker reads ({SIDE}, {SIDE}); resize the image first")
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1
    ground = ((pixels - (2 * GROUND - 1)) ** 2).sum(axis=2)
    best: tuple[float, Scene, float] | None = None
    for layout in LAYOUTS:
        corners = RELATIONS[layout]
        found = [_nearest(pixels[top : top + SLOT, left : left + SLOT]) for left, top in corners]
        inside = sum(ground[top : top + SLOT, left : left + SLOT].sum() for left, top in corners)
        unlike = sum(distance for _, distance in found)
        whole = float(unlike + ground.sum() - inside)
        if best is None or whole < best[0]:
            best = whole, _scene(layout, *(name for name, _ in found)), float(unlike) / (len(found) * SLOT * SLOT * 3)
    assert best is not None
    return Seen(best[1], best[2])


def right_picture(image: Image.Image, solution: str) -> bool:
    """Does the picture show what a row's ``solution`` says, ``"a fox above a hamburger"``: which emoji, how many, and where?"""
    return caption(inspect(image).scene) == solution


def clear_picture(image: Image.Image, solution: str) -> bool:
    """``right_picture``, and an error below ``CLEAR``."""
    seen = inspect(image)
    return caption(seen.scene) == solution and seen.error < CLEAR


def alike_picture(image: Image.Image, solution: str) -> bool:
    """``right_picture``, where an emoji may also be seen as one of its ``ALIKE`` look-alikes."""
    scene = inspect(image).scene
    names = [scene.first] if scene.second is None else [scene.first, scene.second]
    choices = product(*([name, *look_alikes(name)] for name in names))
    return any(caption(_scene(scene.relation, *chosen)) == solution for chosen in choices)


def look_alikes(name: str) -> tuple[str, ...]:
    """The ``ALIKE`` emoji whose sprites are nearest to that of ``name``, the nearest first."""
    whole, _ = _templates()
    still = whole[SHIFTS.index((0.0, 0.0)) :: len(SHIFTS)]
    distances = ((still - still[NAMES.index(name)]) ** 2).sum(axis=1)
    return tuple(NAMES[index] for index in np.argsort(distances)[1 : ALIKE + 1])


def _scene(layout: str, first: str, second: str | None = None) -> Scene:
    return Scene("two", first) if layout == "left of" and first == second else Scene(layout, first, second)


def _nearest(slot: NDArray[np.float32]) -> tuple[str, float]:
    """The name of the sprite nearest to ``[24, 24, 3]``, and the sum of their squared differences."""
    whole, lengths = _templates()
    flat = slot.reshape(-1)
    distances = lengths - 2 * (whole @ flat)
    index = int(distances.argmin())
    return NAMES[index // len(SHIFTS)], float(((whole[index] - flat) ** 2).sum())


@cache
def _templates() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """``[sprites x shifts, 24 x 24 x 3]`` in [-1, 1], and their squared lengths."""
    whole = np.stack([2 * drawn(name, shift).reshape(-1) - 1 for name in NAMES for shift in SHIFTS])
    return whole, (whole**2).sum(axis=1)
