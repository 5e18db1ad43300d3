"""``unigrpo rewards``: what the rewards of a recipe say of completions in a file."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..data.pictures import load_image
from ..data.rows import image_of, shows_image, task_of
from ..errors import RewardError
from ..rollout.reward_values import shortened
from ..rollout.rewards import RewardSet, resolve_reward
from ..terminal import tracked
from ..types import TASKS, Sample, is_picture, spans_of
from .build import build_rewards
from .recipe import Recipe
from .score_report import Column, report, weighted


BATCH = 64
"""Rows that a reward gets at once."""

MANY_ROWS = 256
"""From here on scoring shows its progress."""


def score_file(recipe: Recipe, data: str, output: str | None = None) -> Iterator[str]:
    """Scores ``data`` with the rewards of a recipe; lines of a report.

    Args:
        data: JSON lines with ``prompt``, ``completion`` and the columns of the dataset; of tasks that draw the completion is the
            path of a picture. ``completion_ids`` is read by rewards that count tokens.
        output: file to write, with ``line``, ``reward`` and ``rewards`` of each row as JSON lines; it must not exist.

    Raises:
        ValueError: a file that is missing, exists or cannot be written, a line that is no such row, or a column that a reward
            lacks.
    """
    lines, samples = _read(Path(data))
    functions = [resolve_reward(reward) for reward in build_rewards(recipe)]
    names = RewardSet(functions=functions).names
    columns = [Column(name=name, weight=spec.weight) for name, spec in zip(names, recipe.rewards, strict=True)]
    options = {
        "on_error": recipe.config.get("reward_error", "raise"),
        "timeout": recipe.config.get("reward_timeout", 600),
    }
    sets = [RewardSet(functions=[function], **options) for function in functions]
    for own, name in zip(sets, names, strict=True):
        own.names = [name]
        own.know_columns(*(sample.row for sample in samples))
    with _created(output) as file:
        starts = range(0, len(samples), BATCH)
        for start in tracked(starts, f"scoring {data}", error=True) if len(samples) >= MANY_ROWS else starts:
            _score(samples[start : start + BATCH], sets, columns, data)
            for place in range(start, min(start + BATCH, len(samples))) if file else ():
                scores = {column.name: column.scores[place] for column in columns}
                line = {"line": lines[place], "reward": weighted(columns, place), "rewards": scores}
                file.write(json.dumps(line) + "\n")
    yield from report(data, lines, samples, columns)
    if output is not None:
        yield f"\nwrote {len(samples)} rows to {output}"


@contextmanager
def _created(output: str | None) -> Iterator[IO[str] | None]:
    """A new file; None where there is none to write."""
    if output is None:
        yield None
        return
    try:
        file = open(output, "x", encoding="utf-8")  # noqa: SIM115
    except FileExistsError:
        raise ValueError(f"--output {output!r} exists already: name another file, or remove it") from None
    except OSError as error:
        raise ValueError(f"--output {output!r} cannot be written ({error.strerror})") from None
    with file:
        yield file


# ---- rows ----


def _read(path: Path) -> tuple[list[int], list[Sample]]:
    """Line numbers and answers of a file of JSON lines; empty lines are passed over."""
    numbers, samples = [], []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    samples.append(_sample(line, f"{path}, line {number}"))
                    numbers.append(number)
    except OSError as error:
        raise ValueError(f"--data {str(path)!r} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"--data {str(path)!r} is no UTF-8 text ({error})") from None
    if not samples:
        raise ValueError(f"--data {str(path)!r} has no rows: give JSON lines with `prompt` and `completion`")
    return numbers, samples


def _sample(line: str, where: str) -> Sample:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where} is a {type(row).__name__}: give an object with `prompt` and `completion`")
    for name in ("prompt", "completion"):
        if row.get(name) is None:
            raise ValueError(f"{where} has no `{name}`, only {sorted(row)}")
    prompt, completion, task = row["prompt"], _text(row.pop("completion"), where), task_of(row)
    if not isinstance(prompt, str) and not (isinstance(prompt, list) and all(isinstance(own, dict) for own in prompt)):
        raise ValueError(f"{where}: `prompt` must be a text or a list of messages, got {shortened(repr(prompt))}")
    if task not in TASKS:
        raise ValueError(f"{where}: `task` is {task!r}: choose one of {list(TASKS)}")
    ids = row.pop("completion_ids", None) or []
    if not isinstance(ids, list):
        raise ValueError(f"{where}: `completion_ids` must be a list of tokens, got {shortened(repr(ids))}")
    images = [image_of(row, where)] if shows_image(row) else None
    answer = load_image(completion, f"{where}['completion']") if is_picture(spans_of(task)[-1]) else completion
    return Sample(row=row, completion=answer, completion_ids=ids, task=task, images=images)


def _text(completion: Any, where: str) -> str:
    """A completion's text; of a chat answer, its one message's."""
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], dict):
        completion = completion[0].get("content")
    if not isinstance(completion, str):
        raise ValueError(f"{where}: `completion` must be a text, got {shortened(repr(completion))}")
    return completion


# ---- scores ----


def _score(samples: list[Sample], sets: list[RewardSet], columns: list[Column], data: str) -> None:
    for own, column in zip(sets, columns, strict=True):
        started = time.perf_counter()
        try:
            values = own.score(samples).values[:, 0].tolist()
        except RewardError as error:
            if isinstance(error.__cause__, ValueError):  # A column that is missing or wrong: the file's fault.
                has = ", ".join(sorted({key for sample in samples for key in sample.row}))
                raise ValueError(f"{data}: {error.__cause__} (its columns are {has})") from error
            raise
        column.seconds += time.perf_counter() - started
        column.scores += [None if math.isnan(value) else value for value in values]
