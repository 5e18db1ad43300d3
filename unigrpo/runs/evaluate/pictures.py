"""How much the pictures of one prompt differ from each other."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


SIDE = 64


def diversity(folder: Path, answers: list[dict[str, Any]]) -> list[float]:
    """Of each prompt with several pictures the mean distance of two of them, in order of rows.

    A distance is the root of the mean squared difference of all values, in [0, 1], of pictures that are brought to ``SIDE`` squared:
    0 where they are the same, about 0.4 for two of white noise. It knows no objects, but needs no model.
    """
    rows: dict[int, list[Path]] = {}
    for own in answers:
        if own.get("picture"):
            rows.setdefault(own["row"], []).append(folder / own["completion"])
    return [_spread(paths) for _, paths in sorted(rows.items()) if len(paths) > 1]


def _spread(paths: list[Path]) -> float:
    values = [_pixels(path) for path in paths]
    return float(np.mean([np.sqrt(np.mean((one - other) ** 2)) for one, other in combinations(values, 2)]))


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return (
            np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float64) / 255
        )
