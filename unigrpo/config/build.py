"""An algorithm is a combination of parts: here the settings of a task become the objects that run it.

``PRESETS`` (``presets.py``) says which part each published method uses; ``NOISING`` and ``SAMPLERS`` list the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from ..algorithm.loss import PolicyLoss
from ..algorithm.mixing import MIXING, Reduction
from ..algorithm.noising import NOISING, Noising, build_noising
from ..algorithm.surrogates import SURROGATES
from ..errors import check_choice
from ..samplers import IMAGE_SAMPLERS, SAMPLERS
from ..types import TASKS
from .arguments import UniGRPOConfig
from .checks import check_blocks
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
        return self.settings.reduce in MIXING

    @property
    def tokenwise(self) -> bool:
        """Whether every token has a term of its own, so that draws which share no token may run apart."""
        return self.settings.importance_sampling_level == "token" and self.settings.reduce != "signed"

    @property
    def uses_ratio(self) -> bool:
        """Whether the surrogate compares with the old policy."""
        return SURROGATES[self.settings.surrogate].uses_ratio

    @property
    def needs_old(self) -> bool:
        """Whether the old policy's log-probabilities are read."""
        return self.uses_ratio or (self.settings.beta > 0 and self.settings.kl_reference == "old")


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
    check_choice("surrogate", settings.surrogate, tuple(SURROGATES))
    if settings.eval_sampler is not None:
        check_choice("eval_sampler", settings.eval_sampler, tuple(SAMPLERS))
    return Algorithm(
        settings=settings,
        sampler=build_sampler(settings),
        noising=build_noising(settings, args.num_timesteps, settings.reduce in MIXING),
        loss=build_loss(settings, task),
    )


def build_loss(settings: TaskSettings, task: str) -> PolicyLoss:
    """The loss that a task asks for. An image always fills its canvas, so there a constant length is its own."""
    constant = settings.loss_type == "dr_grpo" and task == "t2i"
    return PolicyLoss(
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high,
        beta=settings.beta,
        kl_estimator=settings.kl_estimator,
        kl_level=settings.kl_level,
        level=settings.importance_sampling_level,
        normalization="completion" if constant else settings.length_normalization,
        surrogate=settings.surrogate,
        delta=settings.delta,
        log_ratio_clip=settings.log_ratio_clip,
        reduction=Reduction(
            kind=settings.reduce,
            bound_exponent=settings.bound_exponent,
            bound_mixture=settings.bound_mixture,
        ),
        loss_type="grpo" if constant else settings.loss_type,
        max_length=settings.max_completion_length,
    )


def build_algorithms(args: UniGRPOConfig) -> dict[str, Algorithm]:
    """One algorithm a task."""
    return {task: build_algorithm(args, task) for task in TASKS}
