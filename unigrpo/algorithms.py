"""An algorithm is a combination of parts: here the settings of a task become the objects that run it.

``PRESETS`` (``presets.py``) says which part each published method uses; ``NOISING`` and ``SAMPLERS`` list the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from .config import UniGRPOConfig
from .losses import PolicyLoss
from .noising import NOISING
from .samplers import IMAGE_SAMPLERS, SAMPLERS
from .settings import TaskSettings, check_blocks, check_choice
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


def check_task_sampler(args: UniGRPOConfig, task: str, where: str, held_out: bool = False) -> None:
    """Raises ``ValueError`` naming ``where`` when the sampler of ``task``, or of its held-out rows, cannot answer it."""
    settings = args.for_task(task)
    suits = [name for name in SAMPLERS if (name in IMAGE_SAMPLERS) == (task == "t2i")]
    key = "eval_sampler" if held_out and settings.eval_sampler else "sampler"
    sampler = getattr(settings, key)
    if sampler in SAMPLERS and sampler not in suits:
        raise ValueError(
            f"{where}: {key}={sampler!r} cannot answer task {task!r}; set task_overrides.{task}.{key} to one of {suits}"
        )
    if task != "t2i":
        check_blocks(f"{where}, task {task!r}: ", settings)


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
