"""Where each value comes from: override > given > preset for the task > task default > preset > the part's own default."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ..algorithm.advantages import ADVANTAGE_ESTIMATORS
from ..algorithm.loss import PolicyLoss
from ..algorithm.noising import Noising
from ..parts import Choice, Key, choose, keys_of, merged
from ..types import KINDS
from .presets import SEQUENCE_EPSILON, TASK_DEFAULTS
from .task import PARTS, SHARED_KEYS, TASK_KEYS, TaskKeys, TaskSettings


def task_settings(
    given: Mapping[str, Any], preset: Mapping[str, Any], task: str, override: Mapping[str, Any], where: str = ""
) -> TaskSettings:
    """The settings of ``task``.

    Args:
        given: what the user set for the whole run.
        preset: the algorithm's values; a nested mapping holds those of one task.
        override: what the user set for the task.

    Raises:
        ValueError: an unknown part, or a key that it does not have; ``where`` prefixes its name.
    """
    usual = {key: value for key, value in preset.items() if key in TASK_KEYS}
    usual |= {**TASK_DEFAULTS[task], **preset.get(KINDS.get(task, task), {}), **preset.get(task, {})}
    parts = {}
    for kind, table in PARTS.items():
        named = merged(override.get(kind), given.get(kind), usual.get(kind), TASK_KEYS[kind].default)
        parts[kind] = choose(kind, named, table, where)
    owned = _owned(parts, override, given)
    nearest = {key: owned[key] for kind in parts for key in _keys_in(override.get(kind)) if key in owned}
    chosen = {**given, **owned, **override, **nearest}
    usual = _without_replaced(usual, parts, chosen)
    values, defaults, explicit = {}, _defaults(parts), {*owned, *override}
    for key in TASK_KEYS:
        value = chosen.get(key, usual.get(key))
        values[key] = defaults[key] if value is None and key not in explicit else value
    if values["importance_sampling_level"] == "sequence" and (chosen.get("epsilon") or usual.get("epsilon")) is None:
        values["epsilon"] = SEQUENCE_EPSILON
    values["epsilon_high"] = values["epsilon"] if values["epsilon_high"] is None else values["epsilon_high"]
    if values["kl_reference"] == "old" and values["kl_estimator"] == "exact" and chosen.get("kl_estimator") is None:
        # Only the default of pictures: the old policy's whole distributions are not kept.
        values["kl_estimator"] = "k3"
    if values["guidance"] == "none":
        values["guidance_scale"] = values["image_guidance_scale"] = 0.0
    set_keys = {key for key in values if chosen.get(key, usual.get(key)) is not None}
    values |= {kind: _as_written(choice, parts, set_keys) for kind, choice in parts.items()}
    return TaskSettings(**values)


LENGTHS = ("max_completion_length", "steps", "block_length")
"""What a checkpoint's ``sampling_defaults`` say of text; they suit each other, so they are taken together or not at all."""


def with_lengths(
    preset: Mapping[str, Any],
    usual: Mapping[str, Any],
    given: Mapping[str, Any],
    overrides: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """``preset`` with the ``usual`` lengths of a checkpoint for each text task of which nobody has set one."""
    lengths = {key: usual[key] for key in LENGTHS if usual.get(key) is not None}
    tasks = {}
    for task in ("text", "mmu"):
        own = preset.get(task, {})
        if not any(key in layer for key in LENGTHS for layer in (given, overrides.get(task, {}), preset, own)):
            tasks[task] = {**own, **lengths}
    return {**preset, **tasks}


def _owner(key: str, parts: Mapping[str, Choice]) -> str | None:
    """The kind of the first chosen part that reads ``key``; its value is the task's, for likelihood and checks too."""
    return next((kind for kind, choice in parts.items() if key in SHARED_KEYS and key in keys_of(choice.part)), None)


def _owned(parts: Mapping[str, Choice], override: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the mappings of parts give to keys of the task. A flat key of a higher layer wins over a mapping's."""
    owned = {}
    for kind, choice in parts.items():
        for key, value in choice.own.items():
            from_preset = key not in {*_keys_in(override.get(kind)), *_keys_in(given.get(kind))}
            if _owner(key, parts) == kind and not (from_preset and given.get(key) is not None):
                owned[key] = value
    return owned


def _keys_in(part: Any) -> list[str]:
    return [key for key in part if key != "name"] if isinstance(part, Mapping) else []


def _as_written(choice: Choice, parts: Mapping[str, Choice], set_keys: set[str]) -> Any:
    """The part's name, with the keys that are its alone: other parts, or nobody else, read them."""
    keys, defaults = keys_of(choice.part), _defaults(parts)
    own = {key: value for key, value in choice.own.items() if _owner(key, parts) != choice.kind}
    for key in keys:
        # A default of its own, where the task's value is only the default of the key's owner.
        if key in SHARED_KEYS and key not in own and key not in set_keys and keys[key].default != defaults[key]:
            own[key] = keys[key].default
    return {"name": choice.name, **own} if own else choice.name


def _without_replaced(preset: Mapping[str, Any], parts: Mapping[str, Choice], chosen: Mapping[str, Any]) -> dict:
    """A preset's values without those that belong to a noising, timestep rule or ratio level that the user replaced."""
    values = {**preset}

    def usual(key: str) -> Any:
        return preset.get(key, TASK_KEYS[key].default)

    if parts["noising"].name != merged(usual("noising"))["name"]:
        of_noisings = {key for part in PARTS["noising"].values() for key in keys_of(part)} - set(keys_of(Noising))
        values = {key: value for key, value in values.items() if key not in {*of_noisings, "num_noise_samples"}}
    elif chosen.get("timesteps") not in (None, usual("timesteps")):
        values.pop("mask_ratio_min", None)
    if chosen.get("importance_sampling_level") not in (None, usual("importance_sampling_level")):
        values = {key: value for key, value in values.items() if key not in ("epsilon", "epsilon_high")}
    if (chosen.get("weighting") or usual("weighting")) == "inverse_probability":
        # The weights make up for what is not hidden: the whole answer is summed.
        values["length_normalization"] = "completion"
    return values


def _defaults(parts: Mapping[str, Choice]) -> dict[str, Any]:
    """The default of each key in the first chosen part that reads it, else in the first that describes it."""
    return _defaults_of(*(choice.part for choice in parts.values()))


@functools.cache
def _defaults_of(*parts: Any) -> dict[str, Any]:
    defaults = {key: about.default for key, about in TASK_KEYS.items()}
    for part in (PolicyLoss, *reversed(parts), TaskKeys):
        defaults |= {key: about.default for key, about in keys_of(part).items()}
    return defaults


def run_settings(given: Mapping[str, Any], preset: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    """The value of each of ``keys``, which hold for every task alike."""
    values = {key: given.get(key, preset.get(key)) for key in keys}
    values = {key: keys[key].default if value is None else value for key, value in values.items()}
    kind = "advantage_estimator"
    own = merged(given.get(kind), preset.get(kind), keys[kind].default)
    choose(kind, own, ADVANTAGE_ESTIMATORS)
    return {**values, kind: own if len(own) > 1 else own["name"]}
