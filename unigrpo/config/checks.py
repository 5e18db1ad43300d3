"""Whether the parts of a task fit each other and can train."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..algorithm.loss import PolicyLoss
from ..algorithm.noising import Noising
from ..parts import Choice, choose, keys_of, merged
from ..samplers import SAMPLERS, exact_decoding
from .task import PARTS, TASK_KEYS, TaskKeys, TaskSettings


SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "sampler": (lambda part: isinstance(part, type), "a class"),
    "noising": (lambda part: isinstance(part, type) and issubclass(part, Noising), "a class derived from Noising"),
    "reduce": (
        lambda part: isinstance(part, type) and hasattr(part, "mixes"),
        "a class that says whether it mixes draws",
    ),
}
"""What a part of one's own must be; the others may be functions too."""


def build_parts(settings: TaskSettings, where: str = "") -> dict[str, Any]:
    """The parts of a task by kind, and its ``"loss"``.

    Raises:
        ValueError: a value out of range, or values that do not fit each other; ``where`` prefixes the first key's name.
    """
    choices = {kind: settings.choice(kind) for kind in PARTS}
    for kind, (fits, words) in SHAPES.items():
        if not fits(choices[kind].part):
            raise ValueError(f"{where}{kind}={choices[kind].name!r} must be {words}")
    mixes = choices["reduce"].part.mixes
    built: dict[str, Any] = {
        kind: choice.build(settings.shared(), where, mixed=mixes) for kind, choice in choices.items()
    }
    try:
        loss = PolicyLoss(
            **{key: getattr(settings, key) for key in keys_of(PolicyLoss)},
            surrogate=built["surrogate"],
            reduce=built["reduce"],
            max_length=settings.max_completion_length,
        )
        built["noising"].check_draws(settings.num_noise_samples)
        check_edits(built["sampler"], built["noising"], choices["noising"].name)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    return {**built, "loss": loss}


def check_edits(sampler: Any, noising: Noising, name: str) -> None:
    """Raises ``ValueError`` for a noising that reads the order of writing, of answers in which tokens are written over."""
    threshold = getattr(sampler, "edit_threshold", None)
    if threshold is not None and noising.reads_step_map:
        raise ValueError(
            f"noising={name!r} scores each token at the step that wrote it, and edit_threshold={threshold} writes tokens over, so "
            "that what the sampler saw there is gone: set edit_threshold to none, or a noising that does not read the order of writing, "
            "such as 'structured' or 'random'"
        )


def check_task(where: str, settings: TaskSettings) -> None:
    """Raises ``ValueError`` for settings of one task that cannot train; ``where`` prefixes the name of a key."""
    for key, about in keys_of(TaskKeys).items():
        about.read(getattr(settings, key), where)
    build_parts(settings, where)
    held_out = eval_sampler(settings)
    for key in (*exact_decoding(held_out.part), "temperature"):
        if settings.eval_sampler is not None and key in held_out.own:
            raise ValueError(
                f"{where}eval_sampler.{key} is not read: held-out answers are decoded exactly, at eval_temperature"
            )
    held_out.build(held_out_values(settings), f"{where}eval_sampler: ")
    if settings.temperature == 0:
        raise ValueError(
            f"{where}temperature=0 makes every answer of a group equal, so nothing is learned; use e.g. 1.0"
        )
    size = settings.image_size
    sides = [size] if not isinstance(size, list | tuple) else list(size)
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    if size is not None and not (whole and 1 <= len(sides) <= 2):
        raise ValueError(f"{where}image_size={size!r} must be a side in pixels or [height, width]")
    if settings.beta > 0 and settings.kl_estimator == "exact" and settings.kl_reference == "old":
        raise ValueError(
            f"{where}kl_estimator='exact' with kl_reference='old' would keep the old policy's whole distributions; use "
            "'k3', or kl_reference='initial'"
        )
    weighting = (settings.weighting, settings.choice("reduce").part.mixes, settings.length_normalization)
    if weighting == ("inverse_probability", False, "masked"):
        raise ValueError(
            f"{where}length_normalization='masked' with weighting='inverse_probability' and reduce='per_draw' divides by the "
            "hidden share twice; use 'completion', the default there"
        )


def check_bound(key: str, value: Any) -> None:
    """Raises ``ValueError`` for seconds that bound nothing; None = no bound."""
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ValueError(f"{key}={value!r} must be a number of seconds, or None for no bound")
    if value is not None and not 0 < value <= threading.TIMEOUT_MAX:
        raise ValueError(f"{key}={value} must be a positive number of seconds, or None for no bound")


def check_blocks(where: str, settings: TaskSettings) -> None:
    """Raises ``ValueError`` where a text answer has more blocks than denoising steps."""
    rollouts = ("steps", settings.choice("sampler"), settings.steps)
    held_out = ("eval_denoising_steps", eval_sampler(settings), settings.eval_denoising_steps)
    for key, sampler, steps in (rollouts, held_out):
        if steps is None or not {"steps", "block_length"} <= set(keys_of(sampler.part)):
            continue
        length = sampler.own.get("block_length", settings.block_length)
        if key == "eval_denoising_steps" and "block_length" not in sampler.own:
            length = held_out_values(settings).get("block_length", keys_of(sampler.part)["block_length"].default)
        if length is None:  # The model's own, which the sampler asks the policy for.
            continue
        blocks = -(-settings.max_completion_length // length)
        if sampler.own.get("steps", steps) < blocks:
            raise ValueError(
                f"{where}{key}={steps} is less than the {blocks} blocks of an answer (max_completion_length="
                f"{settings.max_completion_length} / block_length={length}); raise {key} or block_length"
            )


def held_out_values(settings: TaskSettings) -> dict[str, Any]:
    """The values of the task that the sampler of held-out generation reads; it takes no shortcut.

    Another sampler than the rollouts' has its own default of what nobody set.
    """
    rollouts, held_out, values = settings.choice("sampler"), eval_sampler(settings), settings.shared()
    if rollouts.part is not held_out.part:
        keys = {**keys_of(held_out.part), **TASK_KEYS, **keys_of(rollouts.part)}
        values = {key: value for key, value in values.items() if key not in keys or value != keys[key].default}
    return {**values, **exact_decoding(held_out.part)}


def eval_sampler(settings: TaskSettings) -> Choice:
    """The ``Choice`` of held-out generation's sampler."""
    if settings.eval_sampler is None:
        return settings.choice("sampler")
    return choose("eval_sampler", merged(settings.eval_sampler, settings.sampler), SAMPLERS)
