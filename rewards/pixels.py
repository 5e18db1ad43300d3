"""Rewards that need no model: what an image is like by its pixels. NumPy and PIL on the CPU."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageColor


Metric = Callable[[str, float], None]


def jpeg_size(
    prompts: list, completions: list, *, quality: int = 95, log_metric: Metric | None = None, **_: Any
) -> list[float | None]:
    """Size of an image as a JPEG file in kilobytes (1000 bytes), more for more detail; range above 0.

    With a negative weight it rewards images that compress well. None where a completion is not an image or cannot be
    written; ``log_metric`` receives the number of the latter as ``jpeg_size/failed``.

    Args:
        quality: of the JPEG, 1 to 95.

    Raises:
        ValueError: ``quality`` is out of range.
    """
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 95:
        raise ValueError(f"quality must be a whole number from 1 to 95, got {quality!r}")

    def kilobytes(image: Image.Image) -> float:
        file = io.BytesIO()
        image.convert("RGB").save(file, format="JPEG", quality=quality)
        return file.tell() / 1000

    return _score_images("jpeg_size", [(completion, ()) for completion in completions], kilobytes, log_metric)


def colour(
    prompts: list,
    completions: list,
    colour: list[str | None] | str | None = None,
    *,
    tolerance: float = 100.0,
    log_metric: Metric | None = None,
    **_: Any,
) -> list[float | None]:
    """Share of an image's pixels that are near a colour; range [0, 1].

    Near is a Euclidean distance of at most ``tolerance`` in RGB, where black and white are 441.7 apart. None where a
    completion is not an image or cannot be read, and where the row names no colour; ``log_metric`` receives the
    number of images that cannot be read as ``colour/failed``.

    Args:
        colour: dataset column, or one colour for all rows: a CSS name such as ``"red"``, or ``"#ff0000"``.
        tolerance: 0 (that very colour) to 441.7 (every colour).

    Raises:
        ValueError: an image and no ``colour`` column or argument, a colour that is none, or a bad tolerance.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be a number of at least 0, got {tolerance!r}")
    if colour is None and any(isinstance(completion, Image.Image) for completion in completions):
        raise ValueError("colour needs a `colour` column in the dataset or one colour as an argument, e.g. 'red'")
    names = [colour] * len(completions) if colour is None or isinstance(colour, str) else colour

    def share(image: Image.Image, target: tuple[int, int, int]) -> float:
        distance = np.asarray(image.convert("RGB"), dtype=np.float32) - np.float32(target)
        return float((np.square(distance).sum(axis=-1) <= tolerance**2).mean())

    rows = [
        (None, ()) if name is None else (completion, (_rgb(name),))
        for completion, name in zip(completions, names, strict=True)
    ]
    return _score_images("colour", rows, share, log_metric)


def pixel_similarity(
    prompts: list, completions: list, images: list | None = None, *, log_metric: Metric | None = None, **_: Any
) -> list[float | None]:
    """How little an edit has changed its picture: 1 minus the mean absolute difference of the pixels of the image and of the one that
    came in, as parts of 255; range [0, 1], 1 for the same picture.

    The one that came in is squashed to the size of the other. An image that is no edit but a copy scores highest, so give it a small
    weight beside a reward of the edit itself. None where a completion is not an image or cannot be read, and where the row shows no
    image; ``log_metric`` receives the number of those that cannot be read as ``pixel_similarity/failed``.

    Args:
        images: the input images of each row; the first one counts.
    """
    shown = [None] * len(completions) if images is None else images

    def similarity(image: Image.Image, before: Image.Image) -> float:
        if not before.width or not before.height:
            raise ValueError("an image without pixels")
        resized = before.convert("RGB").resize(image.size, Image.Resampling.BICUBIC)
        made, old = (np.asarray(own.convert("RGB"), dtype=np.float32) for own in (image, resized))
        return 1.0 - float(np.abs(made - old).mean()) / 255.0

    rows = [(completion, (own[0],)) if own else (None, ()) for completion, own in zip(completions, shown, strict=True)]
    return _score_images("pixel_similarity", rows, similarity, log_metric)


def _rgb(name: Any) -> tuple[int, int, int]:
    try:
        return ImageColor.getrgb(name)[:3]
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"colour {name!r} is neither a CSS name such as 'red' nor '#rrggbb'") from error


def _score_images(
    name: str, rows: list[tuple[Any, tuple]], score: Callable[..., float], log_metric: Metric | None
) -> list[float | None]:
    """``score(image, *arguments)`` of the rows that hold an image."""
    scores: list[float | None] = [None] * len(rows)
    images = [index for index, (image, _) in enumerate(rows) if isinstance(image, Image.Image)]
    failed = 0
    for index in images:
        image, arguments = rows[index]
        try:
            if not image.width or not image.height:
                raise ValueError("an image without pixels")
            scores[index] = score(image, *arguments)
        except (OSError, ValueError, SyntaxError):  # what PIL raises for a broken, empty or oversized image
            failed += 1
    if images and log_metric is not None:
        log_metric(f"{name}/failed", float(failed))
    return scores
