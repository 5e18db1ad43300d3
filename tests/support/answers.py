"""Answers to be scored without a model, and rewards over them that are well."""

from __future__ import annotations

import asyncio

from unigrpo.types import Sample


def answers(count: int = 3, **columns) -> list[Sample]:
    """Answers "answer 0", ... to "question 0", ...; a column's values go by row."""
    rows = [{"prompt": f"question {i}", **{key: own[i] for key, own in columns.items()}} for i in range(count)]
    return [sample(row, f"answer {i}", [i, i + 1]) for i, row in enumerate(rows)]


def sample(row, completion="c", completion_ids=(1,), task="text", **columns) -> Sample:
    """One answer; ``row`` may be its prompt alone."""
    row = row if isinstance(row, dict) else {"prompt": row}
    return Sample(row=row, completion=completion, completion_ids=list(completion_ids), task=task, **columns)


def good(completions, **_):
    return [1.0, 2.0, 3.0][: len(completions)]


async def good_later(completions, **_):
    await asyncio.sleep(0.01)
    return [4.0, 5.0, 6.0]


def raises(**_):
    raise KeyError("solution")


async def raises_later(**_):
    await asyncio.sleep(0)
    raise ConnectionError("the judge is down")


def returning(value):
    """A reward that returns it."""

    def odd(**_):
        return value

    return odd
