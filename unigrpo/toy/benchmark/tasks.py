"""What is compared: the tasks with their settings and budgets, and the names and overrides of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from ...config.presets import PRESETS
from ...runs.recipe import CONFIG_KEYS, SECTIONS, Recipe, parse_recipe
from ...runs.recipe_file import parse_yaml


SECONDS = 45.0
"""Wall-clock cap of a training: a cell whose budget takes longer is stopped and marked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One column of the benchmark.

    Attributes:
        name: the column's name, and the shipped policy and rows: ``builtin:NAME``.
        budget: row-passes of training (``budget.PassCounter``); the first optimizer step that reaches it is the last.
        seconds: wall-clock cap of the training.
        held_out: held-out prompts, one answer each, before and after.
        floor: points that the default algorithm must gain in one run, far below what it does gain.
        recipe: the keys of a recipe, but for ``algorithm``, ``seed``, ``output_dir`` and the rows.
        kind: ``task`` of the rows, ``"text"`` or ``"t2i"``.
    """

    name: str
    budget: int
    held_out: int
    floor: float
    recipe: dict[str, Any]
    seconds: float = SECONDS
    kind: str = "text"

    def recipe_of(self, algorithm: str, seed: int, output_dir: str = "") -> Recipe:
        """The recipe of one run: the same in every cell of the task but for these arguments.

        Raises:
            RecipeError: an unknown key.
        """
        rows = {"path": f"builtin:{self.name}", "task": self.kind}
        data = {
            **COMMON,
            "model": {"path": f"builtin:{self.name}", "dtype": "float32"},
            "datasets": [{**rows, "split": "train", "limit": TRAIN_ROWS}],
            "eval_datasets": [{**rows, "split": "test", "limit": self.held_out}],
            **self.recipe,
        }
        return parse_recipe(
            {**data, "algorithm": algorithm, "seed": seed, "output_dir": output_dir}, f"benchmark {self.name}"
        )


TRAIN_ROWS = 2048

COMMON = {
    "num_generations": 8,
    "per_device_train_batch_size": 64,
    "temperature": 1.0,
    "eval_temperature": 1.0,
    "per_device_eval_batch_size": 256,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 1.0,
    "adam_beta2": 0.99,
    # Never reached: the budget or the clock ends a run.
    "max_steps": 100_000,
    "logging_steps": 1,
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
    # Its forwards would count, and only where there is a reference.
    "log_exact_kl": False,
}
"""Keys of every task. What belongs to an algorithm (beta, epsilon, num_iterations, noise ...) is set nowhere here."""

TEXT = {"eval_sampler": "semi_autoregressive"}
"""Held-out answers are written in one way, however an algorithm writes its rollouts."""

TASKS: dict[str, Task] = {
    "arithmetic": Task(
        name="arithmetic",
        budget=32_000,
        held_out=256,
        floor=5.0,
        recipe={
            **TEXT,
            "rewards": [{"name": "math_correctness", "weight": 2.0}, {"name": "think_format", "weight": 0.5}],
            "max_completion_length": 16,
            "steps": 16,
            "block_length": 4,
            "learning_rate": 1.5e-4,
        },
    ),
    "countdown": Task(
        name="countdown",
        budget=32_000,
        held_out=256,
        floor=3.0,
        recipe={
            **TEXT,
            "rewards": [{"name": "countdown"}],
            "accuracy": {"text": "unigrpo.toy.countdown:solved"},
            "max_completion_length": 12,
            "steps": 12,
            "block_length": 12,
            "learning_rate": 3.0e-4,
        },
    ),
    "sudoku": Task(
        name="sudoku",
        budget=20_000,
        held_out=256,
        floor=10.0,
        recipe={
            **TEXT,
            "rewards": [{"name": "sudoku"}],
            "accuracy": {"text": "unigrpo.toy.sudoku:solved"},
            "max_completion_length": 17,
            "steps": 8,
            "block_length": 17,
            "learning_rate": 2.0e-4,
        },
    ),
    "shapes": Task(
        name="shapes",
        kind="t2i",
        budget=27_000,
        held_out=336,
        floor=1.0,
        recipe={
            "rewards": [{"name": "clip_score", "args": {"model": "builtin:shapes_clip"}}],
            "accuracy": {"t2i": "unigrpo.toy.pixel_check:right_picture"},
            "sampler": "emerge",
            "eval_sampler": "emerge",
            "steps": 8,
            "guidance_scale": 0.0,
            "learning_rate": 2.0e-4,
        },
    ),
}

OWN_KEYS = tuple(item.name for item in fields(Task) if item.name not in ("name", "kind", "recipe"))
RESERVED = ("algorithm", "seed", "output_dir")


def chosen_names(given: str | None, valid: Iterable[str], what: str) -> list[str]:
    """Names of a comma-separated list, once each in its order; all ``valid`` ones for None.

    Raises:
        ValueError: an empty list or an unknown name; it names the nearest valid one.
    """
    valid = list(valid)
    if given is None:
        return valid
    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    if not names:
        raise ValueError(f"{what}={given!r} names nothing; choose from {valid}")
    for name in names:
        _known(name, valid, what)
    return names


def chosen_algorithms(given: str | None) -> list[str]:
    """Presets by name; all for None."""
    return chosen_names(given, PRESETS, "algorithms")


def chosen_seeds(given: str) -> list[int]:
    """Seeds of a comma-separated list, once each in its order."""
    try:
        seeds = list(dict.fromkeys(int(word) for word in given.split(",") if word.strip()))
    except ValueError as error:
        raise ValueError(f"seeds={given!r} must be integers with commas between them") from error
    if not seeds or min(seeds) < 0:
        raise ValueError(f"seeds={given!r} must be integers from 0 on, at least one")
    return seeds


def chosen_tasks(given: str | None, overrides: list[str]) -> dict[str, Task]:
    """Tasks by name, all for None, with ``TASK.KEY=VALUE`` overrides (YAML values; a key of ``Task`` or of recipes).

    Raises:
        ValueError: an unknown task or key, or a key that belongs to the cells.
    """
    tasks = {name: TASKS[name] for name in chosen_names(given, TASKS, "tasks")}
    for override in overrides:
        place, equals, text = override.partition("=")
        name, dot, key = place.partition(".")
        if not equals or not dot:
            raise ValueError(f"override {override!r} is not of the form TASK.KEY=VALUE, e.g. arithmetic.budget=50000")
        _known(name, list(tasks), f"override {override!r}: tasks")
        tasks[name] = _changed(tasks[name], key, parse_yaml(text, f"override {place}"))
    return tasks


def _changed(task: Task, key: str, value: Any) -> Task:
    if key in RESERVED:
        raise ValueError(f"{task.name}.{key}: cells differ in algorithm and seed only; use --{key}s or --output_dir")
    _known(key, [*OWN_KEYS, *SECTIONS, *CONFIG_KEYS], f"{task.name}: keys")
    if key not in OWN_KEYS:
        return replace(task, recipe={**task.recipe, key: value})
    kinds = (int,) if key in ("budget", "held_out") else (int, float)
    if type(value) not in kinds or (value <= 0 and key != "floor"):
        raise ValueError(f"{task.name}.{key}={value!r} must be {' or '.join(kind.__name__ for kind in kinds)} above 0")
    return replace(task, **{key: value})


def _known(name: str, valid: list[str], what: str) -> None:
    if name in valid:
        return
    near = difflib.get_close_matches(name, valid, n=1)
    raise ValueError(f"{what}: {name!r} is unknown; " + (f"did you mean {near[0]!r}?" if near else f"choose {valid}"))
