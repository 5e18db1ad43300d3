"""An algorithm is a combination of parts: here the settings of a task become the objects that run it.

``PRESETS`` (``presets.py``) says which part each published method uses; ``NOISING`` and ``SAMPLERS`` list the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from .config import TaskSettings, UniGRPOConfig, check_choice
from .losses import PolicyLoss
from .noising import NOISING
from .samplers import SAMPLERS
from .types import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """The parts of one task's training: how answers are sampled, corrupted and turned into a loss."""

    settings: TaskSettings
    sampler: Callable
    noising: Callable
    loss: PolicyLoss


def build_sampler(settings: TaskSettings, **overrides) -> Callable:
    """The sampler of a task, or of that name; it takes those of the task's settings that it has fields for."""
    name = overrides.pop("sampler", settings.sampler)
    check_choice("sampler", name, tuple(SAMPLERS))
    kind = SAMPLERS[name]
    values = {item.name: getattr(settings, item.name) for item in fields(kind) if hasattr(settings, item.name)}
    return kind(**{**values, **overrides})


def build_algorithm(args: UniGRPOConfig, task: str) -> Algorithm:
    """The parts that ``args`` choose for ``task``."""
    settings = args.for_task(task)
    check_choice("noising", settings.noising, tuple(NOISING))
    if settings.eval_sampler is not None:
        check_choice("eval_sampler", settings.eval_sampler, tuple(SAMPLERS))
    return Algorithm(
        settings=settings,
        sampler=build_sampler(settings),
        noising=NOISING[settings.noising](settings, args.num_timesteps),
        loss=PolicyLoss(
            epsilon=settings.epsilon,
            epsilon_high=settings.epsilon_high,
            beta=settings.beta,
            kl_estimator=settings.kl_estimator,
            level=settings.importance_sampling_level,
            normalization=settings.length_normalization,
        ),
    )


def build_algorithms(args: UniGRPOConfig) -> dict[str, Algorithm]:
    """One algorithm a task."""
    return {task: build_algorithm(args, task) for task in TASKS}
