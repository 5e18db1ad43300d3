"""Keys that a user set and that nothing reads: an algorithm is made of parts, and most keys belong to some of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ..algorithm.advantages import ADVANTAGE_ESTIMATORS
from ..algorithm.loss import PolicyLoss
from ..parts import Key, choose, keys_of
from ..types import CANVAS_TASKS, KINDS
from .run_keys import ESTIMATOR_KEYS, RUN_KEYS
from .task import PARTS, TASK_KEYS, TaskKeys, TaskSettings


def warn_of_unread(args: Any, given: Mapping[str, Any]) -> None:
    """Warns of flat keys among ``given`` that no task reads, and of overrides that their task does not read.

    A warning and no error: a recipe may be run with ``algorithm=`` another one. A key that has its default needs no reader.
    """
    # Spans have what their kinds have, unless they are overridden.
    tasks = [task for task in CANVAS_TASKS if task not in KINDS or task in args.task_overrides]
    settings = {task: args.for_task(task) for task in tasks}
    unread = [
        f"{key}={value!r} ({_readers(key, settings)})"
        for key, value in given.items()
        if key in TASK_KEYS and not any(_reads(own, key, value) for own in settings.values())
    ]
    unread += [
        f"task_overrides.{task}.{key}={value!r} ({_readers(key, {task: settings[task]})})"
        for task, values in args.task_overrides.items()
        for key, value in values.items()
        if not _reads(settings[task], key, value)
    ]
    unread += _unchosen(given, settings)
    estimator = choose("advantage_estimator", args.advantage_estimator, ADVANTAGE_ESTIMATORS)
    for key in sorted(ESTIMATOR_KEYS & set(given)):
        if key not in keys_of(estimator.part) and given[key] != RUN_KEYS[key].default:
            unread.append(f"{key}={given[key]!r} ({_named('advantage_estimator', ADVANTAGE_ESTIMATORS, key)})")
    if unread:
        warnings.warn(
            f"algorithm {args.algorithm_name!r} does not read what was set: {'; '.join(unread)}", stacklevel=2
        )


def _reads(settings: TaskSettings, key: str, value: Any) -> bool:
    """Whether a part of the task reads ``key`` from its settings."""
    if value is None or value == TASK_KEYS[key].default:
        return True
    about = _readings(settings).get(key)
    return about is not None and (about.read_if is None or about.read_if[1](settings))


def _readings(settings: TaskSettings) -> dict[str, Key]:
    """The keys that the parts of a task take from its settings; those that a mapping gives to its part are not asked for."""
    keys = {**keys_of(TaskKeys), **keys_of(PolicyLoss)}
    for choice in map(settings.choice, PARTS):
        keys |= {key: about for key, about in keys_of(choice.part).items() if key not in choice.own}
    return keys


def _unchosen(given: Mapping[str, Any], settings: Mapping[str, TaskSettings]) -> list[str]:
    """Keys in a mapping whose part no task takes."""
    lost = []
    for kind in PARTS:
        own = given.get(kind)
        if (
            isinstance(own, Mapping)
            and "name" in own
            and all(own["name"] != task.choice(kind).name for task in settings.values())
        ):
            lost += [f"{kind}.{key}={value!r} ({kind} {own['name']!r})" for key, value in own.items() if key != "name"]
    return lost


def _readers(key: str, settings: Mapping[str, TaskSettings]) -> str:
    """What would read ``key``, in words."""
    about = next((keys[key] for keys in map(_readings, settings.values()) if key in keys), None)
    if about is not None and about.read_if is not None:
        return about.read_if[0]
    return " or ".join(_named(kind, table, key) for kind, table in PARTS.items() if _named(kind, table, key))


def _named(kind: str, table: Mapping[str, Any], key: str) -> str:
    names = [repr(name) for name, part in table.items() if key in keys_of(part)]
    return f"{kind}{'s' if len(names) > 1 else ''} {' and '.join(names)}" if names else ""
