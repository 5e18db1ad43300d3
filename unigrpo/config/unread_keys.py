"""Keys that a user set and that nothing reads: an algorithm is made of parts, and most keys belong to one of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from ..types import TASKS
from .task import TaskSettings


READ_WITH: dict[str, tuple[str, Callable[[TaskSettings], bool]]] = {
    "timesteps": ("noising 'structured' and 'ramp'", lambda own: own.noising in ("structured", "ramp")),
    "timestep_start": ("noising 'structured' and 'ramp'", lambda own: own.noising in ("structured", "ramp")),
    "kv_cache": (
        "sampler 'semi_autoregressive'",
        lambda own: own.kv_cache == "none" or own.sampler == "semi_autoregressive",
    ),
    "confidence_threshold": ("sampler 'semi_autoregressive'", lambda own: own.sampler == "semi_autoregressive"),
    "exit_entropy": ("sampler 'semi_autoregressive'", lambda own: own.sampler == "semi_autoregressive"),
    "draw_coupling": ("noising 'random'", lambda own: own.noising == "random"),
    "trajectory_shrink": ("noising 'trajectory'", lambda own: own.noising == "trajectory"),
    "bound_exponent": ("reduce 'signed'", lambda own: own.reduce == "signed"),
    "bound_mixture": ("reduce 'signed'", lambda own: own.reduce == "signed"),
    "epsilon": ("surrogates 'ppo' and 'cispo'", lambda own: own.surrogate in ("ppo", "cispo")),
    "epsilon_high": ("surrogates 'ppo' and 'cispo'", lambda own: own.surrogate in ("ppo", "cispo")),
    "delta": ("surrogate 'ppo'", lambda own: own.surrogate == "ppo"),
    "log_ratio_clip": ("a ratio or a KL", lambda own: own.surrogate != "log_likelihood" or own.beta > 0),
    "kl_estimator": ("beta > 0", lambda own: own.beta > 0),
    "kl_reference": ("beta > 0", lambda own: own.beta > 0),
    "kl_level": (
        "beta > 0 and sequence levels",
        lambda own: own.beta > 0 and own.importance_sampling_level != "token",
    ),
}
"""What reads a key, in words and as a test."""


def warn_of_unread(args: Any, given: set[str]) -> None:
    """Warns of flat keys among ``given`` that no task reads, and of overrides that their task does not read.

    A warning and no error: a recipe may be run with ``algorithm=`` another one.
    """
    unread = [
        f"{key}={getattr(args, key)!r} ({words})"
        for key, (words, reads) in READ_WITH.items()
        if key in given and not any(reads(args.for_task(task)) for task in TASKS)
    ]
    for task, values in args.task_overrides.items():
        own = args.for_task(task)
        unread += [
            f"task_overrides.{task}.{key}={values[key]!r} ({words})"
            for key, (words, reads) in READ_WITH.items()
            if key in values and not reads(own)
        ]
    if args.advantage_estimator != "softmax" and "advantage_temperature" in given:
        unread.append(f"advantage_temperature={args.advantage_temperature!r} (advantage_estimator 'softmax')")
    if unread:
        warnings.warn(f"algorithm {args.algorithm!r} does not read what was set: {'; '.join(unread)}", stacklevel=2)
