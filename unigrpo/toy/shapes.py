"""A world of coloured shapes: pictures of 32 x 32 pixels, captions, and questions about them.

A spec is a size, a colour, a shape and a position: 240 in all. One in five is held out: of each size, colour and shape,
exactly one of the five positions, so that every word and every pair of colour and shape occurs in both splits.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


SPLITS = ("train", "test")
SIDE = 32
"""Width and height of a picture, in pixels."""

COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.80, 0.20),
    "blue": (0.15, 0.30, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.65, 0.15, 0.80),
    "white": (0.95, 0.95, 0.95),
}
"""RGB in [0, 1], the middle of each colour's jitter."""

SHAPES = ("circle", "square", "triangle", "cross")
RADII = {"small": 6.75, "large": 9.75}
SIZES = tuple(RADII)
OFFSETS = {"center": (0.0, 0.0), "left": (-4.5, 0.0), "right": (4.5, 0.0), "top": (0.0, -4.5), "bottom": (0.0, 4.5)}
"""Pixels right and down from the middle of the picture."""
POSITIONS = tuple(OFFSETS)

RADIUS_JITTER, POSITION_JITTER, COLOUR_JITTER, BRIGHTEST_BACKGROUND = 0.4, 0.75, 0.05, 0.12

FORMS = {
    "full": "a {size} {colour} {shape} at the {position}",
    "no position": "a {size} {colour} {shape}",
    "no size": "a {colour} {shape} at the {position}",
    "short": "a {colour} {shape}",
}
QUESTIONS = {"colour": "What color is it?", "shape": "What shape is it?", "caption": "Describe the picture."}
"""What a question asks for: its wording. The answer is one word, or the full caption."""

WORDS = (
    *("a", "at", "the"),
    *SIZES,
    *COLOURS,
    *SHAPES,
    *POSITIONS,
    *("What", "color", "shape", "is", "it", "?", "Describe", "picture", "."),
)
"""Every word and mark of captions, questions and answers, once each."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a picture shows: keys of ``RADII``, ``COLOURS``, ``SHAPES`` and ``OFFSETS``."""

    size: str
    colour: str
    shape: str
    position: str


SPECS = tuple(Spec(*words) for words in product(SIZES, COLOURS, SHAPES, POSITIONS))


def specs(split: str) -> list[Spec]:
    """The specs of a split in the order of ``SPECS``: 192 for ``"train"``, 48 for ``"test"``.

    Raises:
        ValueError: ``split`` is not one of ``SPLITS``.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose one of {SPLITS}")
    return [spec for spec in SPECS if split_of(spec) == split]


def split_of(spec: Spec) -> str:
    """The split that owns ``spec``."""
    size, colour, shape = SIZES.index(spec.size), list(COLOURS).index(spec.colour), SHAPES.index(spec.shape)
    held_out = POSITIONS[(3 * size + colour + 2 * shape) % len(POSITIONS)]
    return "test" if spec.position == held_out else "train"


def caption(spec: Spec, form: str = "full") -> str:
    """``spec`` in words: ``"a small red circle at the left"``, or less of it by the ``form``, a key of ``FORMS``.

    Raises:
        ValueError: ``form`` is none of them.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r}: choose one of {tuple(FORMS)}")
    return FORMS[form].format(**asdict(spec))


def render(spec: Spec, rng: np.random.Generator) -> Image.Image:
    """A 32 x 32 RGB picture of ``spec`` on a nearly black ground; ``rng`` jitters radius, place, colour and ground."""
    radius = RADII[spec.size] + rng.uniform(-RADIUS_JITTER, RADIUS_JITTER)
    shift = np.array(OFFSETS[spec.position]) + rng.uniform(-POSITION_JITTER, POSITION_JITTER, 2)
    colour = np.array(COLOURS[spec.colour]) + rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3)
    ground = np.full(3, rng.uniform(0.0, BRIGHTEST_BACKGROUND))
    middle = (SIDE - 1) / 2 + shift
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    distance = signed_distance(spec.shape, x - middle[0], y - middle[1], radius)
    cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    pixels = np.clip(cover * colour + (1.0 - cover) * ground, 0.0, 1.0)
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))


def signed_distance(
    shape: str, x: NDArray[np.floating], y: NDArray[np.floating], radius: float
) -> NDArray[np.floating]:
    """Pixels from the outline of ``shape`` around the origin, negative inside; ``y`` points down.

    Every shape's bounding box is centred on the origin; the widest is 2 ``radius`` wide.

    Raises:
        ValueError: ``shape`` is not one of ``SHAPES``.
    """
    across, down = np.abs(x), np.abs(y)
    match shape:
        case "circle":
            return np.hypot(x, y) - radius
        case "square":
            return np.maximum(across, down) - 0.9 * radius
        case "triangle":
            half_height = 0.9 * radius
            slope = np.hypot(1.0, 2 * half_height / radius)
            sides = (2 * half_height / radius * across - y - half_height) / slope
            return np.maximum(sides, y - half_height)
        case "cross":
            arm = 0.36 * radius
            return np.minimum(
                np.maximum(across - radius, down - arm),
                np.maximum(across - arm, down - radius),
            )
    raise ValueError(f"shape={shape!r}: choose one of {SHAPES}")


def problems(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Text-to-image rows of a split, a function of the arguments alone.

    Args:
        split: ``"train"`` or ``"test"``; the specs of one never occur in the other.
        n: number of rows; None = one for each spec. Beyond that, specs repeat in a new order.
        seed: decides the order.

    Returns:
        dictionaries with ``prompt`` (the full caption), ``task`` (``"t2i"``), ``solution`` (colour, shape and position in
        words, what a picture must show to be right), and ``size``, ``colour``, ``shape``, ``position``.
    """
    members = specs(split)
    endless = _shuffled_forever(members, random.Random(f"problems/{split}/{seed}"))
    count = len(members) if n is None else n
    return [
        {
            "prompt": caption(spec),
            "task": "t2i",
            "solution": f"{spec.colour} {spec.shape} {spec.position}",
            **asdict(spec),
        }
        for _, spec in zip(range(count), endless, strict=False)
    ]


def questions(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Image-understanding rows of a split, a function of the arguments alone.

    Args:
        split, n: as in ``problems``; None = one question for each spec.
        seed: decides the order, the questions and the pictures' jitter.

    Returns:
        dictionaries with ``prompt`` (a value of ``QUESTIONS``), ``image`` (a 32 x 32 RGB picture), ``solution`` (one
        word, or the full caption), ``task`` (``"mmu"``), ``question`` (a key of ``QUESTIONS``), and ``size``,
        ``colour``, ``shape``, ``position``.
    """
    members = specs(split)
    order = random.Random(f"questions/{split}/{seed}")
    jitter = np.random.default_rng([SPLITS.index(split), seed])
    endless = _shuffled_forever(members, order)
    count = len(members) if n is None else n
    return [
        _question(spec, order.choice(list(QUESTIONS)), jitter) for _, spec in zip(range(count), endless, strict=False)
    ]


def _question(spec: Spec, question: str, jitter: np.random.Generator) -> dict[str, Any]:
    answers = {"colour": spec.colour, "shape": spec.shape, "caption": caption(spec)}
    return {
        "prompt": QUESTIONS[question],
        "image": render(spec, jitter),
        "solution": answers[question],
        "task": "mmu",
        "question": question,
        **asdict(spec),
    }


def _shuffled_forever(items: list[Spec], rng: random.Random) -> Iterator[Spec]:
    while True:
        yield from rng.sample(items, len(items))
