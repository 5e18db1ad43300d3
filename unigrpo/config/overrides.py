"""``task_overrides``: what one task sets for itself, however it was written."""

from __future__ import annotations

import json
from typing import Any

from ..errors import check_choice
from ..parts import plain
from ..types import CANVAS_TASKS, SPANS
from .task import PARTS


PART_KEYS = (*PARTS, "eval_sampler", "advantage_estimator", "algorithm")
"""Keys that choose a part."""


def read_overrides(given: Any) -> dict[str, dict[str, Any]]:
    """``task_overrides``, also as JSON, as a mapping of its own in which parts have the form of a recipe.

    Raises:
        ValueError: JSON that is none, no mapping of tasks, or no mapping of keys.
    """
    overrides = given or {}
    if isinstance(overrides, str):
        try:
            overrides = json.loads(overrides)
        except json.JSONDecodeError as error:
            raise ValueError(f"task_overrides={overrides!r} is not JSON: {error}") from error
    if not isinstance(overrides, dict):
        raise ValueError(f"task_overrides={overrides!r} must be a mapping of tasks")
    for task, values in overrides.items():
        if task in SPANS:
            raise ValueError(
                f"task_overrides.{task}: its spans have settings of their own, {list(SPANS[task])}; set those"
            )
        check_choice("task_overrides key", task, CANVAS_TASKS)
        if not isinstance(values, dict):
            raise ValueError(f"task_overrides.{task}={values!r} must be a mapping of keys")
    return {
        task: {
            name: plain(f"task_overrides.{task}.{name}", value) if name in PART_KEYS else value
            for name, value in values.items()
        }
        for task, values in overrides.items()
    }
