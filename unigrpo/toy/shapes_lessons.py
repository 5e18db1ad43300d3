"""Lessons of the shapes world: pictures to draw, questions with answers, and sums, by a teacher that is right or one that errs.

The teacher that errs draws words again at random, with fixed chances. A policy learns the mistakes with their frequencies, so
that at temperature 1 it starts well below what it knows, whatever the training length.
"""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np

from . import arithmetic, shapes
from .shapes import COLOURS, FORMS, QUESTIONS, SHAPES, SPLITS, Spec, caption, render, specs


WRONG_WORD, WRONG_ANSWER, WRONG_SUM = 0.25, 0.4, 0.4
"""Chances that the teacher draws again: the colour, and the shape, of a caption to draw; a one-word answer; the number added.

Of a caption that is an answer, colour and shape are each drawn again with half the chance of a one-word answer.
"""

SHORTER = 0.4
"""Chance of a caption to draw to take any of ``FORMS``, the full one too; others are full."""

PICTURES_PER_SPEC = 16
"""Pictures of a spec, shared by all lessons: of all 240, so few that their codes stay in memory."""


def pictures(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """``shapes.problems`` with a picture each, in ``image``."""
    rows = shapes.problems(split, n, seed)
    jitter = np.random.default_rng([SPLITS.index(split), seed])
    return [{**row, "image": render(_spec(row), jitter)} for row in rows]


def answers(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """``shapes.questions`` with the right answer each, in ``completion``."""
    return [{**row, "completion": row["solution"]} for row in shapes.questions(split, n, seed)]


def careless_pictures(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Pictures of a split's specs, with captions that often have fewer words and sometimes wrong ones.

    Args:
        n: number of rows; None = one for each picture.

    Returns:
        dictionaries with ``prompt``, ``image`` and ``task`` (``"t2i"``); ``size``, ``colour``, ``shape`` and ``position`` are the
        picture's.
    """
    rng, drawn = random.Random(f"shapes, careless pictures/{split}/{seed}"), gallery(split, seed)
    rows = []
    for _ in range(len(drawn) if n is None else n):
        row = rng.choice(drawn)
        form = rng.choice(list(FORMS)) if rng.random() < SHORTER else "full"
        rows.append({**row, "prompt": caption(_mistaken(_spec(row), WRONG_WORD, rng), form), "task": "t2i"})
    return rows


def careless_answers(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Questions about pictures of a split's specs, with answers that are sometimes wrong.

    Returns:
        dictionaries with ``prompt``, ``image``, ``completion``, ``question``, ``task`` (``"mmu"``), and the picture's words.
    """
    rng, drawn = random.Random(f"shapes, careless answers/{split}/{seed}"), gallery(split, seed)
    rows = []
    for _ in range(len(drawn) if n is None else n):
        row, question = rng.choice(drawn), rng.choice(list(QUESTIONS))
        said = _mistaken(_spec(row), WRONG_ANSWER / (2 if question == "caption" else 1), rng)
        completion = {"colour": said.colour, "shape": said.shape, "caption": caption(said)}[question]
        about = {"prompt": QUESTIONS[question], "completion": completion, "question": question, "task": "mmu"}
        rows.append({**row, **about})
    return rows


def careless_sums(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """``arithmetic.problems`` with the trace of the sum, or sometimes of one in which another number is added."""
    rng = random.Random(f"shapes, careless sums/{split}/{seed}")
    rows = []
    for row in arithmetic.problems(split, n, seed):
        added = rng.choice(arithmetic.SECOND) if rng.random() < WRONG_SUM else row["b"]
        rows.append({**row, "completion": arithmetic.trace({**row, "b": added})})
    return rows


@cache
def gallery(split: str, seed: int = 0) -> list[dict[str, Any]]:
    """``PICTURES_PER_SPEC`` pictures of every spec of a split: ``image`` and the spec's words.

    Raises:
        ValueError: ``split`` is not one of ``SPLITS``.
    """
    members = [spec for spec in specs(split) for _ in range(PICTURES_PER_SPEC)]
    jitter = np.random.default_rng([len(SPLITS), SPLITS.index(split), seed])
    return [{"image": render(spec, jitter), **asdict(spec)} for spec in members]


def _spec(row: dict[str, Any]) -> Spec:
    return Spec(*(row[name] for name in Spec.__slots__))


def _mistaken(spec: Spec, chance: float, rng: random.Random) -> Spec:
    if rng.random() < chance:
        spec = replace(spec, colour=rng.choice(list(COLOURS)))
    if rng.random() < chance:
        spec = replace(spec, shape=rng.choice(SHAPES))
    return spec
