"""Answers to the rows of a task: which are still to be given, in which batches, and what is kept of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from PIL import Image

from ...rollout.pipeline import Pipeline
from ...rollout.sample import check_prompt, sample_answers
from ...training.metrics import Metrics
from ...training.scores import own_scores
from ...types import Sample
from .folder import Key
from .rows import Asked


SAMPLES = 1_000_000
"""More than the answers that a row can have: a row and a sample of it are one number, which random numbers are keyed by."""


def wanted(asked: Asked, done: set[Key]) -> list[tuple[int, int]]:
    """Row and sample of each answer that is not there yet, the first samples of all rows before the second."""
    every = ((row, sample) for sample in range(asked.num_samples) for row in range(len(asked.rows)))
    return [(row, sample) for row, sample in every if (asked.name, row, sample) not in done]


def batches(pipe: Pipeline, asked: Asked, left: list[tuple[int, int]], size: int) -> list[list[tuple[int, int]]]:
    """``left`` of this process, in batches.

    Where padding is attended like text an answer would depend on the longest prompt beside it, so there a batch holds one row.
    """
    own = left[pipe.rank :: pipe.ranks]
    if not pipe.policy.attends_padding:
        return [own[start : start + size] for start in range(0, len(own), size)]
    rows: dict[int, list[tuple[int, int]]] = {}
    for row, sample in own:
        rows.setdefault(row, []).append((row, sample))
    return [own[start : start + size] for own in rows.values() for start in range(0, len(own), size)]


def check_task(pipe: Pipeline, asked: Asked) -> None:
    """Raises ``ValueError`` for prompts that do not fit, and for a task that the policy or its sampler cannot do."""
    checked: dict[str, Any] = {}
    for row in range(len(asked.rows)):
        where = f"task {asked.name}, row {row}"
        check_prompt(pipe.policy, pipe.args, pipe.codec, asked.rows[row], where, held_out=True, checked=checked)


def answer(
    pipe: Pipeline,
    asked: Asked,
    batch: list[tuple[int, int]],
    keep: Callable[[Key, Image.Image], str],
) -> list[dict[str, Any]]:
    """The lines of ``answers.jsonl`` for a batch.

    Random numbers are keyed by the seed, the task, the row and the sample, so that an answer depends neither on its batch nor on how
    many processes there are.

    Args:
        keep: saves a picture, and returns its path.

    Raises:
        RewardError: the judge failed.
    """
    rows = [asked.rows[row] for row, _ in batch]
    numbers = [row * SAMPLES + sample for row, sample in batch]
    own = replace(pipe, rewards=asked.rewards, rank=0, ranks=1)
    samples = sample_answers(own, rows, 0, indices=numbers, stream=f"evaluate {asked.name}")
    scores = own_scores(own, samples, Metrics()).values[:, 0].tolist()
    places = zip(batch, samples, scores, strict=True)
    return [_line(pipe, asked, row, sample, one, score, keep) for (row, sample), one, score in places]


def _line(
    pipe: Pipeline,
    asked: Asked,
    row: int,
    sample: int,
    one: Sample,
    score: float,
    keep: Callable[[Key, Image.Image], str],
) -> dict[str, Any]:
    key, drawn = (asked.name, row, sample), isinstance(one.completion, Image.Image)
    line: dict[str, Any] = {"task": asked.name, "row": row, "sample": sample, "prompt": one.row["prompt"]}
    line["completion"] = keep(key, one.completion) if drawn else one.completion
    if drawn and one.images:
        line["shown"] = keep((f"{asked.name} shown", row, 0), one.images[0])
    line |= {
        "gold": _plain(one.row.get("solution")),
        "score": score if score == score else None,
        "seed": pipe.args.seed,
    }
    line |= {"picture": True} if drawn else {"tokens": len(one.completion_ids)}
    if one.thought is not None:
        line["thought"] = one.thought
    for name, column in (("cluster", asked.task.cluster), ("category", asked.task.category)):
        if column is not None and column in one.row:
            line[name] = _plain(one.row[column])
    return line


def _plain(value: Any) -> Any:
    """A value of a row as JSON has it."""
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
