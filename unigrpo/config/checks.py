"""Whether the settings of one task can train."""

from __future__ import annotations

import threading
from typing import Any

from ..samplers.semi_autoregressive import check_shortcuts
from .task import TaskSettings


OPTIONAL_NUMBERS = (
    "delta",
    "log_ratio_clip",
    "mask_ratio_min",
    "mask_ratio_max",
    "confidence_threshold",
    "exit_entropy",
)
OPTIONAL = ("eval_denoising_steps", "max_prompt_length", "timestep_start", *OPTIONAL_NUMBERS)
AT_LEAST_ONE = ("max_completion_length", "steps", "block_length", "trajectory_shrink")
WHOLE = (*AT_LEAST_ONE, "num_noise_samples", "eval_denoising_steps", "max_prompt_length", "timestep_start")
NOT_NEGATIVE = (
    "num_noise_samples",
    "beta",
    "temperature",
    "guidance_scale",
    "remask_temperature",
    "eval_temperature",
    "p_mask_prompt",
    "bound_mixture",
    "loss_weight",
)
NUMBERS = (*NOT_NEGATIVE, "epsilon", "bound_exponent", *OPTIONAL_NUMBERS)
RANGED = {"structured": ("truncated", "cosine"), "ramp": ("truncated", "cosine"), "random": None, "coupled": None}
"""Noisings that read ``mask_ratio_min``, and the timestep rules with which they do; None = with any."""


def check_ranges(where: str, values: Any, num_timesteps: int) -> None:
    """Raises ``ValueError`` for a number of one task's settings that cannot train; ``where`` prefixes its name."""
    for key in (*WHOLE, *NUMBERS):
        value = getattr(values, key)
        kind = int if key in WHOLE else int | float
        unset = value is None and key in OPTIONAL
        if not unset and (isinstance(value, bool) or not isinstance(value, kind)):
            raise ValueError(f"{where}{key}={value!r} must be a {'whole ' if key in WHOLE else ''}number")
    for key in (*AT_LEAST_ONE, "eval_denoising_steps", "bound_exponent"):
        if getattr(values, key) is not None and getattr(values, key) < 1:
            raise ValueError(f"{where}{key}={getattr(values, key)} must be at least 1")
    for key in NOT_NEGATIVE:
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
    size = values.image_size
    sides = [size] if not isinstance(size, list | tuple) else list(size)
    if size is not None and (len(sides) > 2 or not all(isinstance(side, int) and side > 0 for side in sides)):
        raise ValueError(f"{where}image_size={size!r} must be a side in pixels or [height, width]")
    if values.timestep_start is not None and not 1 <= values.timestep_start <= num_timesteps:
        raise ValueError(f"{where}timestep_start={values.timestep_start} must lie in 1..num_timesteps={num_timesteps}")


def check_parts(where: str, values: TaskSettings) -> None:
    """Raises ``ValueError`` for parts of an algorithm that do not fit each other."""
    _check_mask_ratios(where, values)
    check_shortcuts(where, values)
    if values.num_noise_samples == 0 and values.noising not in ("trajectory", "autoregressive"):
        raise ValueError(
            f"{where}num_noise_samples=0 means every step of the rollout, which noising={values.noising!r} does not "
            "know; give at least 1"
        )
    if values.noising == "random" and values.draw_coupling == "antithetic" and values.num_noise_samples % 2:
        raise ValueError(
            f"{where}num_noise_samples={values.num_noise_samples} cannot be cut into pairs; make it even, or set "
            "draw_coupling='stratified'"
        )
    if values.beta > 0 and values.kl_estimator == "exact" and values.kl_reference == "old":
        raise ValueError(
            f"{where}kl_estimator='exact' with kl_reference='old' would keep the old policy's whole distributions; use "
            "'k3', or kl_reference='initial'"
        )
    _check_weights(where, values)
    for key, most in (("p_mask_prompt", 1), ("bound_mixture", 1)):
        if getattr(values, key) > most:
            raise ValueError(f"{where}{key}={getattr(values, key)} must lie in [0, {most}]")
    for key, least in (("delta", 1 + values.epsilon_high), ("log_ratio_clip", 0)):
        if getattr(values, key) is not None and getattr(values, key) <= least:
            raise ValueError(f"{where}{key}={getattr(values, key)} must be greater than {least}")


def _check_weights(where: str, values: TaskSettings) -> None:
    if (values.weighting, values.reduce, values.length_normalization) == ("inverse_probability", "per_draw", "masked"):
        raise ValueError(
            f"{where}length_normalization='masked' with weighting='inverse_probability' and reduce='per_draw' divides by the "
            "hidden share twice; use 'completion', the default there"
        )


def _check_mask_ratios(where: str, values: TaskSettings) -> None:
    low, high = values.mask_ratio_min, values.mask_ratio_max
    if low is not None and not 0 <= low < 1:
        raise ValueError(f"{where}mask_ratio_min={low} must lie in [0, 1)")
    if high is not None and not 0 < high <= 1:
        raise ValueError(f"{where}mask_ratio_max={high} must lie in (0, 1]")
    rules = RANGED.get(values.noising, ())
    if low is not None and rules is not None and values.timesteps not in rules:
        raise ValueError(
            f"{where}mask_ratio_min={low} does nothing with noising={values.noising!r} and timesteps="
            f"{values.timesteps!r}; set both, with timesteps 'truncated' or 'cosine', in task_overrides if one task alone "
            "is meant, or use noising 'random' or 'coupled'"
        )
    if high is not None and rules is not None:
        raise ValueError(
            f"{where}mask_ratio_max={high} does nothing with noising={values.noising!r}; noising 'random' and 'coupled' "
            "read it"
        )
    if low is not None and high is not None and low > high:
        raise ValueError(f"{where}mask_ratio_min={low} is greater than mask_ratio_max={high}")


def check_bound(key: str, value: Any) -> None:
    """Raises ``ValueError`` for seconds that bound nothing; None = no bound."""
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ValueError(f"{key}={value!r} must be a number of seconds, or None for no bound")
    if value is not None and not 0 < value <= threading.TIMEOUT_MAX:
        raise ValueError(f"{key}={value} must be a positive number of seconds, or None for no bound")


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
