"""What one task may set for itself, and what its values may be."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any


CHOICES = {
    "guidance": ("rollout", "both", "none"),
    "image_transform": ("squash", "crop", "pad"),
    "importance_sampling_level": ("token", "sequence", "sequence_sum"),
    "kl_estimator": ("k1", "k2", "k3", "exact"),
    "length_normalization": ("masked", "completion"),
    "loss_type": ("grpo",),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "mask_schedule": ("cosine", "linear", "pow2", "pow3.5", "sigmoid"),
    "prompt_truncation": ("error", "left", "right"),
    "remask_noise_decay": ("linear", "compound"),
    "remasking": ("low_confidence", "random"),
    "scale_rewards": ("group", "batch", "none"),
    "timesteps": ("stratified", "paper_formula", "random", "truncated", "cosine"),
}

TASK_KEYS = (
    "sampler",
    "steps",
    "block_length",
    "temperature",
    "remasking",
    "guidance_scale",
    "guidance",
    "mask_schedule",
    "remask_temperature",
    "remask_noise_decay",
    "eval_sampler",
    "eval_denoising_steps",
    "eval_temperature",
    "max_prompt_length",
    "prompt_truncation",
    "max_completion_length",
    "image_size",
    "image_transform",
    "noising",
    "timesteps",
    "timestep_start",
    "mask_ratio_min",
    "num_noise_samples",
    "importance_sampling_level",
    "epsilon",
    "epsilon_high",
    "beta",
    "kl_estimator",
    "length_normalization",
)
"""What one task may set for itself in ``task_overrides``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """The settings of one task: the run's, with the task's overrides. Field meanings are ``UniGRPOConfig``'s."""

    sampler: str
    steps: int
    block_length: int
    temperature: float
    remasking: str
    guidance_scale: float
    guidance: str
    mask_schedule: str
    remask_temperature: float
    remask_noise_decay: str
    eval_sampler: str | None
    eval_denoising_steps: int | None
    eval_temperature: float
    max_prompt_length: int | None
    prompt_truncation: str
    max_completion_length: int
    image_size: int | list[int] | None
    image_transform: str
    noising: str
    timesteps: str
    timestep_start: int | None
    mask_ratio_min: float | None
    num_noise_samples: int
    importance_sampling_level: str
    epsilon: float
    epsilon_high: float
    beta: float
    kl_estimator: str
    length_normalization: str

    @property
    def likelihood_guidance(self) -> float | None:
        """The guidance scale of the likelihood, None for the conditional model alone."""
        return self.guidance_scale if self.guidance == "both" and self.guidance_scale else None


def check_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ``ValueError`` naming the nearest valid choice."""
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{key}={value!r} is not valid: {hint}choose one of {list(choices)}")


OPTIONAL = ("eval_denoising_steps", "max_prompt_length", "timestep_start")
WHOLE = ("num_noise_samples", "max_completion_length", "steps", "block_length", *OPTIONAL)


def check_ranges(where: str, values: Any, num_timesteps: int) -> None:
    """Raises ``ValueError`` for a number of one task's settings that cannot train; ``where`` prefixes its name."""
    for key in WHOLE:
        value = getattr(values, key)
        unset = value is None and key in OPTIONAL
        if not unset and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{where}{key}={value!r} must be a whole number")
    for key in ("beta", "temperature", "guidance_scale", "remask_temperature", "eval_temperature", "epsilon"):
        if isinstance(getattr(values, key), bool) or not isinstance(getattr(values, key), int | float):
            raise ValueError(f"{where}{key}={getattr(values, key)!r} must be a number")
    for key in ("num_noise_samples", "max_completion_length", "steps", "block_length"):
        if getattr(values, key) < 1:
            raise ValueError(f"{where}{key}={getattr(values, key)} must be at least 1")
    if values.eval_denoising_steps is not None and values.eval_denoising_steps < 1:
        raise ValueError(f"{where}eval_denoising_steps={values.eval_denoising_steps} must be at least 1")
    for key in ("beta", "temperature", "guidance_scale", "remask_temperature", "eval_temperature"):
        if getattr(values, key) < 0:
            raise ValueError(f"{where}{key}={getattr(values, key)} must not be negative")
    if values.temperature == 0:
        raise ValueError(
            f"{where}temperature=0 makes every answer of a group equal, so nothing is learned; use e.g. 1.0"
        )
    if not 0 < values.epsilon < 1:
        raise ValueError(f"{where}epsilon={values.epsilon} must lie in (0, 1)")
    if values.epsilon_high is not None and values.epsilon_high <= 0:
        raise ValueError(f"{where}epsilon_high={values.epsilon_high} must be positive")
    if values.mask_ratio_min is not None and not 0 <= values.mask_ratio_min < 1:
        raise ValueError(f"{where}mask_ratio_min={values.mask_ratio_min} must lie in [0, 1)")
    if values.mask_ratio_min is not None and values.timesteps not in ("truncated", "cosine"):
        raise ValueError(
            f"{where}mask_ratio_min={values.mask_ratio_min} does nothing with timesteps={values.timesteps!r}; set both, "
            "with 'truncated' or 'cosine', in task_overrides if one task alone is meant"
        )
    size = values.image_size
    sides = [size] if not isinstance(size, list | tuple) else list(size)
    if size is not None and (len(sides) > 2 or not all(isinstance(side, int) and side > 0 for side in sides)):
        raise ValueError(f"{where}image_size={size!r} must be a side in pixels or [height, width]")
    if values.timestep_start is not None and not 1 <= values.timestep_start <= num_timesteps:
        raise ValueError(f"{where}timestep_start={values.timestep_start} must lie in 1..num_timesteps={num_timesteps}")


def check_blocks(where: str, values: TaskSettings) -> None:
    """Raises ``ValueError`` where a text answer has more blocks than denoising steps."""
    blocks = -(-values.max_completion_length // values.block_length)
    rollouts = ("steps", values.sampler, values.steps)
    held_out = ("eval_denoising_steps", values.eval_sampler or values.sampler, values.eval_denoising_steps)
    for key, sampler, steps in (rollouts, held_out):
        if sampler == "semi_autoregressive" and steps is not None and steps < blocks:
            raise ValueError(
                f"{where}{key}={steps} is less than the {blocks} blocks of an answer (max_completion_length="
                f"{values.max_completion_length} / block_length={values.block_length}); raise {key} or block_length"
            )
