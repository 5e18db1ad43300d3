"""Where each value comes from: override > given > preset for the task > task default > preset > the part's own default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..algorithm.advantages import ADVANTAGE_ESTIMATORS
from ..algorithm.loss import PolicyLoss
from ..algorithm.noising import Noising
from ..parts import Choice, Key, choose, keys_of
from .presets import SEQUENCE_EPSILON, TASK_DEFAULTS
from .task import PARTS, TASK_KEYS, TaskKeys, TaskSettings


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
    merged = {key: value for key, value in preset.items() if key in TASK_KEYS}
    merged |= {**TASK_DEFAULTS[task], **preset.get(task, {})}
    parts = {}
    for kind, table in PARTS.items():
        named = _merged_part(kind, override.get(kind), given.get(kind), merged.get(kind), TASK_KEYS[kind].default)
        parts[kind] = choose(kind, named, table, where)
    usual = _without_replaced(merged, parts, {**given, **override})
    values: dict[str, Any] = {}
    for key in TASK_KEYS:
        value = override[key] if key in override else given.get(key, usual.get(key))
        values[key] = _default(key, parts) if value is None and key not in override else value
    values |= {kind: _as_written(choice) for kind, choice in parts.items()}
    if values["importance_sampling_level"] == "sequence" and {**usual, **given, **override}.get("epsilon") is None:
        values["epsilon"] = SEQUENCE_EPSILON
    values["epsilon_high"] = values["epsilon"] if values["epsilon_high"] is None else values["epsilon_high"]
    chosen = {**given, **override}
    if values["kl_reference"] == "old" and values["kl_estimator"] == "exact" and chosen.get("kl_estimator") is None:
        # Only the default of pictures: the old policy's whole distributions are not kept.
        values["kl_estimator"] = "k3"
    if values["guidance"] == "none":
        values["guidance_scale"] = 0.0
    return TaskSettings(**values)


def _merged_part(kind: str, *layers: Any) -> Any:
    """The first layer that names a part, with the keys of those before it that name none."""
    own: dict[str, Any] = {}
    for layer in layers:
        if layer is not None:
            own = {**(layer if isinstance(layer, Mapping) else {"name": layer}), **own}
            if "name" in own:
                break
    return own


def _as_written(choice: Choice) -> Any:
    return {"name": choice.name, **choice.own} if choice.own else choice.name


def _without_replaced(preset: Mapping[str, Any], parts: Mapping[str, Choice], chosen: Mapping[str, Any]) -> dict:
    """A preset's values without those that belong to a noising, timestep rule or ratio level that the user replaced."""
    values = {**preset}

    def usual(key: str) -> Any:
        return preset.get(key, TASK_KEYS[key].default)

    if parts["noising"].name != usual("noising"):
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


def _default(key: str, parts: Mapping[str, Choice]) -> Any:
    """The default of ``key`` in the first chosen part that reads it, else in the first that describes it."""
    for part in (TaskKeys, *(choice.part for choice in parts.values()), PolicyLoss):
        if key in keys_of(part):
            return keys_of(part)[key].default
    return TASK_KEYS[key].default


def run_settings(given: Mapping[str, Any], preset: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    """The value of each of ``keys``, which hold for every task alike."""
    values = {key: given.get(key, preset.get(key)) for key in keys}
    values = {key: keys[key].default if value is None else value for key, value in values.items()}
    choice = choose("advantage_estimator", values["advantage_estimator"], ADVANTAGE_ESTIMATORS)
    return {**values, "advantage_estimator": _as_written(choice)}
