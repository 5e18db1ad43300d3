"""``task_overrides``: what one task sets for itself, however it was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import check_choice
from ..parts import plain
from ..types import CANVAS_TASKS, SPANS
from .task import PARTS
from .trl_keys import check_loss


PART_KEYS = (*PARTS, "eval_sampler", "advantage_estimator", "algorithm")
"""Keys that choose a part."""


TEMPLATE_KWARGS = (
    "what the chat template of prompts reads beside the messages, by name; none = what was saved with the processor"
)
"""The sentence of ``chat_template_kwargs``."""


def read_mapping(name: str, given: Any) -> dict[str, Any] | None:
    """The mapping that is ``given`` for the key ``name``, also as JSON, as one of its own; None for None.

    Raises:
        ValueError: JSON that is none, or no mapping.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}={given!r} is not JSON: {error}") from error
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ValueError(f"{name}={given!r} must be a mapping")
    return dict(given)


def read_template_kwargs(given: Any) -> dict[str, Any] | None:
    """``chat_template_kwargs``, however it was written; nothing in it is None too.

    Raises:
        ValueError: no mapping of names, or values that no saved run could hold.
    """
    values = read_mapping("chat_template_kwargs", given)
    for name, value in (values or {}).items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"chat_template_kwargs.{name}={value!r} cannot be saved with the run: {error}") from error
        if not isinstance(name, str):
            raise ValueError(
                f"chat_template_kwargs={values!r}: {name!r} is not the name of anything that a template reads"
            )
    return values or None


def read_overrides(given: Any) -> dict[str, dict[str, Any]]:
    """``task_overrides``, also as JSON, as a mapping of its own in which parts have the form of a recipe.

    Raises:
        ValueError: JSON that is none, no mapping of tasks, or no mapping of keys.
    """
    overrides = read_mapping("task_overrides", given) or {}
    for task, values in overrides.items():
        if task in SPANS:
            raise ValueError(
                f"task_overrides.{task}: its spans have settings of their own, {list(SPANS[task])}; set those"
            )
        check_choice("task_overrides key", task, CANVAS_TASKS)
        if not isinstance(values, dict):
            raise ValueError(f"task_overrides.{task}={values!r} must be a mapping of keys")
        check_loss(values.get("loss_type"), f"task_overrides.{task}.")
    return {
        task: {
            name: plain(f"task_overrides.{task}.{name}", value) if name in PART_KEYS else value
            for name, value in values.items()
        }
        for task, values in overrides.items()
    }
