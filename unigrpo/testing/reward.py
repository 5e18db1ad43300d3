"""``check_reward``: what the trainer asks of a reward function."""

from __future__ import annotations

import asyncio
import copy
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from ..rewards import get_reward
from ..rollout.reward_arguments import taken
from .require import require


NOT_COLUMNS = ("prompt", "completion", "completion_ids", "task", "images")
"""Keys of a row that reach a reward in another form; all others are columns of the dataset."""

UNKNOWN = "a_column_of_another_task"
"""A column that no reward asks for: runs hand every reward all columns of the dataset."""

CLOSE = {"rel_tol": 1e-4, "abs_tol": 1e-6}
"""Scores of one answer in two batches: what a reward model's fp32 arithmetic moves."""


def check_reward(
    reward: str | Callable[..., Any],
    rows: Sequence[dict[str, Any]],
    *,
    none_for: Sequence[dict[str, Any]] = (),
    range: tuple[float, float] | None = None,
    deterministic: bool = True,
) -> list[float | None]:
    """Calls ``reward`` on ``rows`` as a run does, a few times, and returns its scores of them.

    Args:
        reward: a function or object with the reward protocol, sync or async, or a name of ``unigrpo.rewards``.
        rows: two answers or more, each with ``"prompt"`` and ``"completion"`` (a text or a picture) and the columns that
            the reward reads; ``"task"`` is what completion and ``"images"`` make it unless it is given: ``"text"`` or ``"mmu"``, of a
            picture ``"t2i"`` or ``"i2i"``. At least one of them must get a score. With chat messages as prompt a text is handed on as one message, as in a run.
        none_for: answers that the reward does not apply to: it must return None for each, and not 0.
        range: the lowest and the highest score that may come out.
        deterministic: False for rewards that ask a service which need not say the same twice.

    Raises:
        AssertionError: one sentence: what is wrong, on which row, and the cure.
        ValueError: fewer than two rows, or a name that leads nowhere.
    """
    if len(rows) < 2:
        raise ValueError(
            f"check_reward needs two rows or more, to see whether their order matters; it got {len(rows)}"
        )
    named = get_reward(reward) if isinstance(reward, str) else reward
    function = named() if isinstance(named, type) else named
    trial = _Trial(function, [*rows, *none_for])
    try:
        scores = trial.scores(rows)
        require(
            any(score is not None for score in scores), "it returned None for every row: give rows that it applies to"
        )
        if range is not None:
            _check_range(scores, range)
        if none_for:
            _check_none(trial, rows, scores, none_for, deterministic)
        if deterministic:
            _check_purity(trial, rows, scores)
    except AssertionError as error:
        raise AssertionError(f"{trial.name}: {error}") from error
    return scores


class _Trial:
    """A reward and how it is called; every call gets the columns of all ``rows``, as in a run."""

    def __init__(self, function: Callable[..., Any], rows: Sequence[dict[str, Any]]) -> None:
        self.function = function
        self.columns = sorted({key for row in rows for key in row if key not in NOT_COLUMNS} | {UNKNOWN})
        self.name = getattr(getattr(function, "func", function), "__name__", type(function).__name__)

    def scores(self, rows: Sequence[dict[str, Any]]) -> list[float | None]:
        """One call for all ``rows``: finite numbers or None, and arguments as they were."""
        log, arguments = _Log(len(rows)), _arguments(rows, self.columns)
        kept = copy.deepcopy(arguments)
        calls = {"trainer_state": SimpleNamespace(global_step=0), "log_extra": log.extra, "log_metric": log.metric}
        result = self._called({**arguments, **calls})
        for name, before in kept.items():
            require(
                _same(before, arguments[name]),
                f"it changed its argument {name}: copy what you want to change",
            )
        return _as_scores(result, len(rows))

    def _called(self, arguments: dict[str, Any]) -> Any:
        try:
            arguments = taken(self.function, arguments)
            inspect.signature(self.function).bind(**arguments)
        except TypeError as error:
            raise AssertionError(f"it cannot take what a run hands it: {error}") from error
        except ValueError:
            pass  # A function without a signature, such as a built-in one: the call will tell.
        result = self.function(**arguments)
        if inspect.isawaitable(result):
            # In a thread of its own, because a notebook's loop is running here already.
            with ThreadPoolExecutor(1) as pool:
                result = pool.submit(asyncio.run, _awaited(result)).result()
        return result


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


class _Log:
    """``log_extra`` and ``log_metric`` of one call."""

    def __init__(self, count: int) -> None:
        self.count = count

    def extra(self, column: str, values: Iterable) -> None:
        count = len(list(values))
        require(
            isinstance(column, str) and count == self.count,
            f"log_extra({column!r}, ...) got {count} values: it takes a name and one value for each of {self.count} answers",
        )

    def metric(self, name: str, value: float) -> None:
        number = isinstance(value, int | float | torch.Tensor) or hasattr(value, "__float__")
        require(
            isinstance(name, str) and number and not math.isinf(float(value)),
            f"log_metric({name!r}, {value!r}) takes a name and a finite number",
        )


def _arguments(rows: Sequence[dict[str, Any]], columns: list[str]) -> dict[str, Any]:
    """The arguments of one call, lists with one item a row; a row that lacks a column has None."""
    return {
        **{key: [copy.deepcopy(row.get(key)) for row in rows] for key in columns},
        "prompts": [copy.deepcopy(row["prompt"]) for row in rows],
        "completions": [_completion(row) for row in rows],
        "completion_ids": [list(row.get("completion_ids", [0])) for row in rows],
        "task": [row.get("task") or _task(row) for row in rows],
        "images": [copy.deepcopy(row.get("images")) for row in rows],
    }


def _task(row: dict[str, Any]) -> str:
    drawn = isinstance(row["completion"], Image.Image)
    return ("i2i" if drawn else "mmu") if row.get("images") else ("t2i" if drawn else "text")


def _completion(row: dict[str, Any]) -> Any:
    own = copy.deepcopy(row["completion"])
    if isinstance(row["prompt"], str) or not isinstance(own, str):
        return own
    return [{"role": "assistant", "content": own}]


def _same(one: Any, two: Any) -> bool:
    """Equality of nested values, pictures and arrays included."""
    if type(one) is not type(two):
        return False
    if isinstance(one, Image.Image):
        return one.size == two.size and one.mode == two.mode and one.tobytes() == two.tobytes()
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(_same, one, two))
    if hasattr(one, "tolist"):
        return _same(one.tolist(), two.tolist())
    if type(one).__eq__ is object.__eq__:
        return _same(vars(one), vars(two)) if hasattr(one, "__dict__") else True
    return one == two or (one != one and two != two)


def _as_scores(result: Any, count: int) -> list[float | None]:
    values = result.tolist() if hasattr(result, "tolist") else result
    require(
        isinstance(values, Iterable) and not isinstance(values, str | bytes | dict | set),
        f"it returned a {type(result).__name__}: return a list with one score an answer, {count} here",
    )
    endless = not isinstance(values, Sized)  # An iterator need not end.
    values = list(itertools.islice(values, count + 1) if endless else values)
    require(
        len(values) == count,
        f"it returned {len(values)} scores for {count} answers: return one an answer, None included",
    )
    scores: list[float | None] = []
    for row, value in enumerate(values):
        number = value is None or (hasattr(value, "__float__") and math.isfinite(float(value)))
        require(
            number,
            f"it returned {value!r} for row {row}: a score is a finite number, and None says that the reward does not apply",
        )
        scores.append(None if value is None else float(value))
    return scores


def _check_range(scores: list[float | None], range: tuple[float, float]) -> None:
    low, high = range
    for row, score in enumerate(scores):
        require(
            score is None or low <= score <= high,
            f"it returned {score} for row {row}, outside its range [{low:g}, {high:g}]",
        )


def _check_none(
    trial: _Trial, rows: Sequence[dict], scores: list[float | None], none_for: Sequence[dict], deterministic: bool
) -> None:
    """None for what does not apply, in a batch of its own and beside other rows, whose scores stay."""
    for batch, start in ((none_for, 0), ([*rows, *none_for], len(rows))):
        found = trial.scores(batch)
        for row, score in enumerate(found[start:]):
            require(
                score is None,
                f"it returned {score} for none_for[{row}], which it does not apply to: return None, which leaves the answer out; a 0 "
                "would count as a bad answer",
            )
    if deterministic:
        _require_equal(scores, found[: len(rows)], "beside rows that it does not apply to")


def _check_purity(trial: _Trial, rows: Sequence[dict], scores: list[float | None]) -> None:
    _require_equal(scores, trial.scores(rows), "when it is called again; deterministic=False if it cannot help it")
    backwards = trial.scores(rows[::-1])[::-1]
    _require_equal(scores, backwards, "in another order: a row's score may not depend on the place of its answer")


def _require_equal(scores: list[float | None], again: list[float | None], when: str) -> None:
    for row, (one, two) in enumerate(zip(scores, again, strict=True)):
        same = one is two or (one is not None and two is not None and math.isclose(one, two, **CLOSE))
        require(same, f"row {row} gets {one} at first and {two} {when}")
