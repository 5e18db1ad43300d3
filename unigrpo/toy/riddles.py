"""Riddles of the shapes world: what to draw is said by other things, so that it has to be thought out first.

*something small, the color of grass, the shape of a coin, where the sun sets* is a small green circle at the left. A thought is the
plain caption; the picture is one of ``shapes``. Of the nine pairs of things for each colour and shape, two are held out: their words occur
in both splits, the pairs in one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from PIL import Image

from .shapes import COLOURS, POSITIONS, SHAPES, SIZES, SPLITS, Spec, caption, render


COLOUR_THINGS = {
    "red": ("tomatoes", "cherries", "rubies"),
    "green": ("grass", "frogs", "limes"),
    "blue": ("oceans", "sapphires", "jeans"),
    "yellow": ("lemons", "bananas", "ducklings"),
    "purple": ("plums", "violets", "lavender"),
    "white": ("snow", "milk", "salt"),
}
SHAPE_THINGS = {
    "circle": ("coin", "wheel", "pancake"),
    "square": ("tile", "chessboard", "stamp"),
    "triangle": ("pyramid", "tent", "sail"),
    "cross": ("plus", "crossroads", "scarecrow"),
}
PLACES = {
    "center": ("where arrows aim", "where the yolk lies"),
    "left": ("where the sun sets", "where a line begins"),
    "right": ("where the sun rises", "where a line ends"),
    "top": ("where birds fly", "where clouds drift"),
    "bottom": ("where roots grow", "where fish sleep"),
}
"""Each word of a caption, and what stands for it in a riddle."""

PROMPT = "something {size}, the color of {colour}, the shape of a {shape}, {place}"

WORDS = (
    "something",
    ", the color of",
    ", the shape of a",
    *(thing for things in (*COLOUR_THINGS.values(), *SHAPE_THINGS.values()) for thing in things),
    *(f", {place}" for places in PLACES.values() for place in places),
)
"""Phrases of riddles, a token each: a short prompt leaves a small policy more sight of its thought."""

MISREAD = 0.6
"""How often the careless teacher takes a thing's colour for the next one."""

CLEAR = 1
"""Of the three things of a colour so many, the first ones, are never misread."""


@dataclass(frozen=True, slots=True)
class Riddle:
    """A spec, and the places of its words in ``COLOUR_THINGS``, ``SHAPE_THINGS`` and ``PLACES``."""

    spec: Spec
    colour_thing: int
    shape_thing: int
    place: int

    @property
    def prompt(self) -> str:
        """The riddle in words."""
        own = self.spec
        return PROMPT.format(
            size=own.size,
            colour=COLOUR_THINGS[own.colour][self.colour_thing],
            shape=SHAPE_THINGS[own.shape][self.shape_thing],
            place=PLACES[own.position][self.place],
        )

    @property
    def split(self) -> str:
        """The split that owns its pair of things."""
        own = list(COLOURS).index(self.spec.colour) * len(SHAPES) + SHAPES.index(self.spec.shape)
        return "test" if (3 * self.colour_thing + self.shape_thing + 4 * own) % 9 in (0, 5) else "train"


RIDDLES = tuple(
    Riddle(Spec(size, colour, shape, position), *things)
    for size, colour, shape, position in product(SIZES, COLOURS, SHAPES, POSITIONS)
    for things in product(range(3), range(3), range(2))
)
"""All 4,320."""


def thought(spec: Spec) -> str:
    """The thought that leads to a picture of ``spec``."""
    return f"<think>{caption(spec)}</think>"


def problems(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of task ``r2i``, a function of the arguments alone.

    Args:
        split: ``"train"`` or ``"test"``; a pair of things of one never occurs in the other.
        n: number of rows; None = one for each riddle. Beyond that, riddles repeat in a new order.
        seed: decides the order.

    Returns:
        dictionaries with ``prompt``, ``task``, ``reward_prompt`` (the plain caption, for rewards that know no riddles), ``thought`` (the
        right one), ``solution`` (colour, shape and position, what a picture must show to be right), and ``size``, ``colour``, ``shape``, ``position``.

    Raises:
        ValueError: ``split`` is not one of ``SPLITS``.
    """
    return [_row(riddle) for riddle in _order(split, n, random.Random(f"riddles/{split}/{seed}"))]


VARIANTS = 10
"""Pictures of each thing that a teacher has. The fewer there are, the sooner a small policy draws one of them, and not their mean."""


def lessons(split: str, n: int | None = None, seed: int = 0, misread: float = 0.0) -> list[dict[str, Any]]:
    """``problems`` with the answers of a teacher: the thought (``completion``), and an ``image`` that follows it.

    ``misread`` is the chance of a wrong colour, where a thing is none of the ``CLEAR`` ones: always the next colour, so that the mistake
    can be learned. The picture is right for the thought, not for the riddle: one of ``VARIANTS`` of it.
    """
    order = _order(split, n, random.Random(f"riddles/{split}/{seed}"))
    errs, picks = (random.Random(f"{what}/{split}/{seed}") for what in ("lessons", "pictures"))
    rows = []
    for riddle in order:
        spec = riddle.spec
        if riddle.colour_thing >= CLEAR and errs.random() < misread:
            names = list(COLOURS)
            spec = replace(spec, colour=names[(names.index(spec.colour) + 1) % len(names)])
        rows.append({**_row(riddle), "completion": thought(spec), "image": _picture(spec, picks.randrange(VARIANTS))})
    return rows


def careless_lessons(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """``lessons`` of a teacher who takes ``MISREAD`` of the colours for the next one."""
    return lessons(split, n, seed, MISREAD)


def _picture(spec: Spec, variant: int) -> Image.Image:
    """The same picture for the same arguments."""
    return render(spec, np.random.default_rng([variant, *caption(spec).encode()]))


def _row(riddle: Riddle) -> dict[str, Any]:
    spec = riddle.spec
    return {
        "prompt": riddle.prompt,
        "task": "r2i",
        "reward_prompt": caption(spec),
        "thought": thought(spec),
        "solution": f"{spec.colour} {spec.shape} {spec.position}",
        **asdict(spec),
    }


def _order(split: str, n: int | None, rng: random.Random) -> list[Riddle]:
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose one of {SPLITS}")
    members = [riddle for riddle in RIDDLES if riddle.split == split]
    endless = _shuffled_forever(members, rng)
    return [riddle for _, riddle in zip(range(len(members) if n is None else n), endless, strict=False)]


def _shuffled_forever(items: list[Riddle], rng: random.Random) -> Iterator[Riddle]:
    while True:
        yield from rng.sample(items, len(items))
