"""Mask schedules: the share of an image that is still hidden when the share ``u`` of the steps is done."""

from __future__ import annotations

import math
from collections.abc import Callable


SIGMOID_RANGE = (-3.0, 3.0)


def _sigmoid(u: float) -> float:
    """A logistic curve over ``SIGMOID_RANGE``, scaled to fall from 1 to 0."""
    start, end = SIGMOID_RANGE
    low, high, here = (1 / (1 + math.exp(-x)) for x in (start, end, start + u * (end - start)))
    return (high - here) / (high - low)


MASK_SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda u: math.cos(math.pi / 2 * u),
    "linear": lambda u: 1 - u,
    "pow2": lambda u: 1 - u**2,
    "pow3.5": lambda u: 1 - u**3.5,
    "sigmoid": _sigmoid,
}
"""u in [0, 1] -> share in [0, 1], falling from 1 to 0 (MaskGIT, arXiv 2202.04200)."""

MASK_SCHEDULE = "share of a picture that is still hidden after each step"
