"""An algorithm is a combination of parts: here the settings of a task become the objects that run it.

``PRESETS`` (``presets.py``) says which part each published method uses; ``PARTS`` (``task.py``) lists the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..algorithm.advantages import ADVANTAGE_ESTIMATORS
from ..algorithm.loss import PolicyLoss
from ..algorithm.noising import Noising
from ..algorithm.surrogates import uses_ratio
from ..models.base import DiffusionPolicy
from ..parts import choose
from ..samplers import answers_task, samplers_for
from ..types import CANVAS_TASKS, is_picture
from .arguments import UniGRPOConfig
from .checks import build_parts, check_blocks, eval_sampler, held_out_values
from .run_keys import ESTIMATOR_KEYS
from .task import TaskSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """The parts of one task's training: how answers are sampled, corrupted and turned into a loss."""

    settings: TaskSettings
    sampler: Callable
    noising: Noising
    loss: PolicyLoss

    @property
    def mixes_draws(self) -> bool:
        """Whether the draws of a row become one log-likelihood before the ratio."""
        return self.loss.reduce.mixes

    @property
    def tokenwise(self) -> bool:
        """Whether every token has a term of its own, so that draws which share no token may run apart."""
        return self.settings.importance_sampling_level == "token" and not self.loss.reduce.by_sign

    @property
    def uses_ratio(self) -> bool:
        """Whether the surrogate compares with the old policy."""
        return uses_ratio(self.loss.surrogate)

    @property
    def needs_old(self) -> bool:
        """Whether the old policy's log-probabilities are read."""
        return self.uses_ratio or (self.settings.beta > 0 and self.settings.kl_reference == "old")


def held_out_sampler(settings: TaskSettings) -> Callable:
    """The sampler of held-out generation. It decodes exactly, whatever the rollouts do."""
    steps = settings.steps if settings.eval_denoising_steps is None else settings.eval_denoising_steps
    choice = eval_sampler(settings)
    values = {
        **held_out_values(settings),
        "steps": steps,
        "temperature": settings.eval_temperature,
    }
    if settings.eval_denoising_steps is not None:
        choice = replace(choice, own={key: value for key, value in choice.own.items() if key != "steps"})
    return choice.build(values)


def check_task_sampler(
    args: UniGRPOConfig, task: str, where: str, held_out: bool = False, policy: DiffusionPolicy | None = None
) -> None:
    """Raises ``ValueError`` naming ``where`` when the sampler of a canvas ``task``, or of its held-out rows, cannot fill it, or not
    for ``policy``.
    """
    settings = args.for_task(task)
    key = "eval_sampler" if held_out and settings.eval_sampler is not None else "sampler"
    sampler = eval_sampler(settings) if held_out else settings.choice("sampler")
    if not answers_task(sampler.part, task):
        raise ValueError(
            f"{where}: {key}={sampler.name!r} cannot answer task {task!r}; set task_overrides.{task}.{key} to one of "
            f"{list(samplers_for(task))}"
        )
    if is_picture(task):
        return
    check_blocks(f"{where}, task {task!r}: ", settings)
    if policy is not None and hasattr(sampler.part, "check_policy"):
        built: Any = held_out_sampler(settings) if held_out else sampler.build(settings.shared())
        own_steps = held_out and settings.eval_denoising_steps is not None
        named = {"steps_key": "eval_denoising_steps"} if own_steps else {}
        built.check_policy(policy, settings.max_completion_length, f"{where}, task {task!r}: ", **named)


def build_algorithm(args: UniGRPOConfig, task: str) -> Algorithm:
    """The parts that ``args`` choose for ``task``."""
    settings = args.for_task(task)
    parts = build_parts(settings)
    loss = parts["loss"]
    if settings.loss_type == "dr_grpo" and is_picture(task):
        # An image always fills its canvas, so there a constant length is its own.
        loss = replace(loss, loss_type="grpo", length_normalization="completion")
    return Algorithm(settings=settings, sampler=parts["sampler"], noising=parts["noising"], loss=loss)


def build_algorithms(args: UniGRPOConfig) -> dict[str, Algorithm]:
    """One algorithm a canvas task."""
    return {task: build_algorithm(args, task) for task in CANVAS_TASKS}


def build_estimator(args: UniGRPOConfig) -> Callable:
    """The advantage estimator of a run."""
    values = {key: getattr(args, key) for key in ESTIMATOR_KEYS}
    return choose("advantage_estimator", args.advantage_estimator, ADVANTAGE_ESTIMATORS).build(values)
