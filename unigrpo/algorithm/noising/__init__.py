"""Corruption of answers for the likelihood. ``NOISING`` is the one place to add a scheme.

A scheme of your own is a class derived from ``Noising``, named ``pkg.mod:Class`` in a recipe.
"""

from __future__ import annotations

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
    "random_corruption",
    "random_subset",
    "timesteps",
]


NOISING: dict[str, type[Noising]] = {
    "structured": StructuredNoising,
    "ramp": RampNoising,
    "full": FullNoising,
    "random": RandomNoising,
    "coupled": CoupledNoising,
    "quadrature": QuadratureNoising,
    "trajectory": TrajectoryNoising,
    "autoregressive": AutoregressiveNoising,
    "block": BlockNoising,
}
"""Schemes by name. The fields of a scheme are the keys that it reads."""
