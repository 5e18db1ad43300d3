"""What one task may set for itself: the keys of its parts, and those that the run reads itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, make_dataclass
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..algorithm.loss import WITH_KL, PolicyLoss
from ..algorithm.mixing import REDUCTIONS
from ..algorithm.noising import NOISING
from ..algorithm.surrogates import SURROGATES, uses_ratio
from ..data.pictures import TRANSFORMS
from ..parts import MOST_REPEATS, MOST_STEPS, Choice, Key, choose, key, keys_of
from ..samplers import SAMPLERS
from ..samplers.base import signed_guidance
from ..types import Guidance


PARTS: dict[str, Mapping[str, Callable]] = {
    "sampler": SAMPLERS,
    "noising": NOISING,
    "reduce": REDUCTIONS,
    "surrogate": SURROGATES,
}
"""The parts of a task by the key that chooses them. Each takes a name, ``pkg.mod:attr``, or a mapping with a ``name``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKeys:
    """What a task may set beside the keys of its parts."""

    sampler: dict[str, Any] | str = key("semi_autoregressive", "how a canvas is filled")
    eval_sampler: dict[str, Any] | str | None = key(None, "sampler of held-out generation; none = the rollouts'")
    eval_denoising_steps: int | None = key(
        None, "denoising steps of held-out generation; none = the rollouts'", at_least=1, at_most=MOST_STEPS
    )
    eval_temperature: float = key(0.0, "temperature of held-out generation; 0 = greedy", at_least=0)
    guidance: str = key(
        "rollout",
        'classifier-free guidance in the "rollout", in rollout and likelihood ("both"), or "none"',
        choices=("rollout", "both", "none"),
    )
    max_prompt_length: int | None = key(
        None, "longest prompt in tokens; none = what fits the model beside the answer", at_least=1
    )
    prompt_truncation: str = key(
        "error",
        """longer prompts are an "error", or lose their beginning ("left") or, for captions of pictures to make, their end
        ("right", as in MMaDA's code)""",
        choices=("error", "left", "right"),
    )
    max_completion_length: int = key(256, "answer positions on a text canvas", at_least=1)
    mask_truncated_completions: bool = key(
        False,
        "text answers without a stop token, which max_completion_length cut off, are left out of the loss; they keep their reward",
    )
    image_size: int | list[int] | None = key(
        None, "side in pixels, or [height, width], of pictures made and read; none = the checkpoint's, or 512"
    )
    image_transform: str = key(
        "squash",
        """how input pictures get that size: "squash", "crop" or "pad"; a row's own image_transform column wins""",
        choices=TRANSFORMS,
    )
    noising: dict[str, Any] | str = key("structured", "how answers are corrupted for their likelihood")
    num_noise_samples: int = key(
        1,
        "S, noise draws an inner update; 0 = every step, for noisings that follow the order of writing",
        at_least=0,
        at_most=MOST_REPEATS,
    )
    reduce: dict[str, Any] | str = key(
        "per_draw",
        """each draw has its own ratio ("per_draw"), or draws are mixed first: linearly ("per_token"), or with an upper bound
        for negative advantages ("signed")""",
    )
    surrogate: dict[str, Any] | str = key("ppo", "what a ratio and an advantage are made into")
    kl_reference: str = key(
        "initial",
        'the KL is taken to the "initial" model, or to the "old" policy that wrote the rollout',
        choices=("initial", "old"),
        read_if=WITH_KL,
    )
    loss_weight: float = key(1.0, "multiplies the whole loss; meant for task_overrides", at_least=0)


def _task_keys() -> dict[str, Key]:
    keys = dict(keys_of(TaskKeys))
    for part in (*(part for table in PARTS.values() for part in table.values()), PolicyLoss):
        keys = {**keys_of(part), **keys}
    return keys


TASK_KEYS: Mapping[str, Key] = MappingProxyType(_task_keys())
"""What one task may set for itself in ``task_overrides``. A key of several parts is described by the first."""


SHARED_KEYS = frozenset(TASK_KEYS) - frozenset(keys_of(TaskKeys))
"""Those of them that parts read. A part's key of any other name is its own, given in its mapping."""


class _Settings:
    """What follows from the settings of a task."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __getattr__(self, key: str) -> Any: ...

    def choice(self, kind: str) -> Choice:
        """The part that ``kind``, a key of ``PARTS``, chooses."""
        return choose(kind, getattr(self, kind), PARTS[kind])

    def shared(self) -> dict[str, Any]:
        """The values that parts read."""
        return {key: getattr(self, key) for key in SHARED_KEYS}

    @property
    def uses_ratio(self) -> bool:
        """Whether the surrogate compares with the old policy."""
        return uses_ratio(self.choice("surrogate").part)

    @property
    def likelihood_guidance(self) -> Guidance | None:
        """The guidance scale, or the pair of them, of the likelihood, None for the conditional model alone."""
        return self.rollout_guidance if self.guidance == "both" else None

    @property
    def rollout_guidance(self) -> Guidance | None:
        """That of rollouts, of the keys that their sampler reads; negative where it leads away from the prompt, None without guidance."""
        read = SHARED_KEYS & keys_of(self.choice("sampler").part).keys()
        return signed_guidance(SimpleNamespace(**{key: getattr(self, key) for key in read})) or None

    @property
    def needs_reference(self) -> bool:
        """Whether a KL to the initial model is taken."""
        return self.beta > 0 and self.kl_reference == "initial"

    @property
    def exact_kl(self) -> bool:
        """Whether whole distributions are compared."""
        return self.needs_reference and self.kl_estimator == "exact"


if TYPE_CHECKING:

    class TaskSettings(_Settings):
        """The settings of one task: a field for each of ``TASK_KEYS``, the run's with the task's overrides."""

        def __init__(self, **values: Any) -> None: ...

else:
    TaskSettings = make_dataclass(
        "TaskSettings",
        [(name, about.hint) for name, about in TASK_KEYS.items()],
        bases=(_Settings,),
        frozen=True,
        slots=True,
        kw_only=True,
    )
    TaskSettings.__doc__ = "The settings of one task: a field for each of ``TASK_KEYS``."
    TaskSettings.__module__ = __name__
