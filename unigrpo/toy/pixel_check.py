"""Reads a picture of the shapes world from its pixels alone, without any model: the independent measure of accuracy.

The rules know the palette's names and values but no geometry of the renderer; the four outlines are drawn here again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .shapes import COLOURS, OFFSETS, SIDE


APART = 0.35
"""Largest difference over the channels, in [0, 1]: more than this is foreground; a colour must be at most this near."""

FEWEST_PIXELS = 25
TEMPLATE_SIDE = 24
LEAST_OVERLAP = 0.72
"""Intersection over union with the best outline, both stretched to ``TEMPLATE_SIDE`` squared."""

ASPECT = (0.65, 1.55)
"""Width over height of the foreground's bounding box."""

LARGE_FROM = 15.5
"""Pixels of the bounding box's longer side from which a shape is large."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What ``inspect`` recognised, in the words of the captions; None where it did not."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    position: str | None = None

    @property
    def valid(self) -> bool:
        """Is this one recognisable shape, whatever it is?"""
        return self.shape is not None


def inspect(image: Image.Image) -> Seen:
    """What the picture shows. ``size`` and ``position`` are given exactly where ``shape`` is.

    Raises:
        ValueError: ``image`` is not 32 x 32; thresholds are in pixels of that size.
    """
    if image.size != (SIDE, SIDE):
        raise ValueError(f"image.size={image.size}: the checker reads ({SIDE}, {SIDE}); resize the image first")
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    foreground = np.abs(pixels - np.median(border, axis=0)).max(axis=2) > APART
    if foreground.sum() < FEWEST_PIXELS:
        return Seen()
    colour = _nearest_colour(np.median(pixels[foreground], axis=0))
    rows, columns = np.flatnonzero(foreground.any(axis=1)), np.flatnonzero(foreground.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    shape = _best_shape(foreground[top:bottom, left:right])
    if shape is None:
        return Seen(colour=colour)
    size = "large" if max(bottom - top, right - left) >= LARGE_FROM else "small"
    return Seen(colour, shape, size, _nearest_position((left + right - SIDE) / 2, (top + bottom - SIDE) / 2))


def matches(image: Image.Image, colour: str, shape: str) -> bool:
    """Does the picture show this shape in this colour?"""
    seen = inspect(image)
    return (seen.colour, seen.shape) == (colour, shape)


def right_picture(image: Image.Image, solution: str) -> bool:
    """Does the picture show what a row's ``solution`` says, ``"red circle left"``: colour, shape and position?"""
    seen = inspect(image)
    return [seen.colour, seen.shape, seen.position] == solution.split()


def detect(images: list[Image.Image], classes: list[list[str]]) -> list[list[dict[str, str | None]]]:
    """The one shape of each picture, as the reward ``object_check`` asks a detector; nothing where there is none."""
    seen = [inspect(image) for image in images]
    return [[{"class": own.shape, "color": own.colour, "position": own.position}] if own.valid else [] for own in seen]


def _nearest_colour(value: NDArray[np.floating]) -> str | None:
    distances = {name: np.abs(value - np.array(rgb)).max() for name, rgb in COLOURS.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= APART else None


def _nearest_position(right: float, down: float) -> str:
    return min(OFFSETS, key=lambda name: np.hypot(right - OFFSETS[name][0], down - OFFSETS[name][1]))


def _best_shape(crop: NDArray[np.bool_]) -> str | None:
    height, width = crop.shape
    if not ASPECT[0] <= width / height <= ASPECT[1]:
        return None
    stretched = Image.fromarray(crop.astype(np.uint8) * 255).resize((TEMPLATE_SIDE, TEMPLATE_SIDE), Image.BILINEAR)
    mask = np.asarray(stretched) >= 128
    overlaps = {name: (mask & one).sum() / (mask | one).sum() for name, one in _templates().items()}
    name = max(overlaps, key=overlaps.__getitem__)
    return name if overlaps[name] >= LEAST_OVERLAP else None


@cache
def _templates() -> dict[str, NDArray[np.bool_]]:
    """The four outlines filling a square of ``TEMPLATE_SIDE`` pixels; coordinates run over [-1, 1], down."""
    steps = (np.arange(TEMPLATE_SIDE) + 0.5) / TEMPLATE_SIDE * 2 - 1
    x, y = steps[None, :], steps[:, None]
    return {
        "circle": x**2 + y**2 <= 1,
        "square": np.ones((TEMPLATE_SIDE, TEMPLATE_SIDE), dtype=bool),
        "triangle": np.abs(x) <= (y + 1) / 2,
        "cross": (np.abs(x) <= 0.36) | (np.abs(y) <= 0.36),
    }
