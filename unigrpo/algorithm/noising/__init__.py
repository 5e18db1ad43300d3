"""Corruption of answers for the likelihood. ``NOISING`` is the one place to add a scheme.

Each entry makes a scheme of a task's settings; the keys a scheme reads are named in its line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .base import Answer, Draw, Noising, answers, random_corruption, random_subset
from .ordered import AutoregressiveNoising, BlockNoising, TrajectoryNoising
from .ramp import RampNoising
from .random import CoupledNoising, FullNoising, QuadratureNoising, RandomNoising
from .structured import StructuredNoising, timesteps


__all__ = [
    "NOISING",
    "Answer",
    "AutoregressiveNoising",
    "BlockNoising",
    "CoupledNoising",
    "Draw",
    "FullNoising",
    "Noising",
    "QuadratureNoising",
    "RampNoising",
    "RandomNoising",
    "StructuredNoising",
    "TrajectoryNoising",
    "answers",
    "build_noising",
    "random_corruption",
    "random_subset",
    "timesteps",
]


def _spaced(settings: Any, num_timesteps: int) -> dict[str, Any]:
    return {
        "timesteps": settings.timesteps,
        "timestep_start": settings.timestep_start,
        "mask_ratio_min": settings.mask_ratio_min,
        "num_timesteps": num_timesteps,
    }


def _range(settings: Any) -> dict[str, Any]:
    """The bounds that are set; the others are the scheme's own."""
    bounds = {"lowest": settings.mask_ratio_min, "highest": settings.mask_ratio_max}
    return {name: bound for name, bound in bounds.items() if bound is not None}


NOISING: dict[str, tuple[type[Noising], Callable[[Any, int], dict[str, Any]]]] = {
    "structured": (StructuredNoising, _spaced),
    "ramp": (RampNoising, _spaced),
    "full": (FullNoising, lambda settings, total: {}),
    "random": (RandomNoising, lambda settings, total: {**_range(settings), "coupling": settings.draw_coupling}),
    "coupled": (CoupledNoising, lambda settings, total: _range(settings)),
    "quadrature": (QuadratureNoising, lambda settings, total: {}),
    "trajectory": (TrajectoryNoising, lambda settings, total: {"shrink": settings.trajectory_shrink}),
    "autoregressive": (AutoregressiveNoising, lambda settings, total: {}),
    "block": (BlockNoising, lambda settings, total: {"block_length": settings.block_length}),
}


def build_noising(settings: Any, num_timesteps: int, mixed: bool) -> Noising:
    """The scheme that a task asks for; ``mixed`` = its draws are mixed before the ratio."""
    kind, fields = NOISING[settings.noising]
    return kind(
        weighting=settings.weighting,
        mixed=mixed,
        p_mask_prompt=settings.p_mask_prompt,
        **fields(settings, num_timesteps),
    )
