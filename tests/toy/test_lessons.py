"""The lessons of the toy worlds: rows with given answers, which no held-out problem is among."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from unigrpo.errors import RecipeError, import_named
from unigrpo.runs.accuracy import integer_match
from unigrpo.runs.dataset_spec import BUILTIN_LESSONS, BUILTIN_SETS, DatasetSpec, load_rows
from unigrpo.runs.sft import given_rows
from unigrpo.toy import (
    arithmetic,
    countdown,
    emoji,
    emoji_check,
    riddles,
    running_sums,
    shapes,
    shapes_lessons,
    sudoku,
)
from unigrpo.toy.pixel_check import right_picture
from unigrpo.toy.shapes import Spec


LESSONS = {
    (name, task, teacher): path
    for (name, task), teachers in BUILTIN_LESSONS.items()
    for teacher, path in teachers.items()
}


def spec_of(row):
    return Spec(row["size"], row["colour"], row["shape"], row["position"])


def totals(row):
    first, *added = map(int, row["prompt"].split("+"))
    return running_sums.split_of(first, tuple(added))


SPLIT_OF_RIDDLE = {riddle.prompt: riddle.split for riddle in riddles.RIDDLES}

SPLIT_OF = {
    "arithmetic": lambda row: arithmetic.split_of(row["a"], row["b"]),
    "countdown": lambda row: countdown.split_of(tuple(row["numbers"]), row["target"]),
    "emoji": lambda row: emoji.split_of(emoji.Scene(row["relation"], row["first"], row["second"])),
    "riddles": lambda row: SPLIT_OF_RIDDLE[row["prompt"]],
    "running_sums": totals,
    "shapes": lambda row: arithmetic.split_of(row["a"], row["b"]) if "a" in row else shapes.split_of(spec_of(row)),
    "sudoku": lambda row: sudoku.split_of(row["solution"]),
}

RIGHT: dict[tuple[str, str | None], Callable] = {
    ("arithmetic", None): lambda row: integer_match(row["completion"], row["solution"]),
    ("countdown", None): lambda row: countdown.solved(row["completion"], row["solution"]),
    ("emoji", None): lambda row: emoji_check.clear_picture(row["image"], row["solution"]),
    ("emoji", "r2i"): lambda row: (
        row["completion"] == row["thought"] and emoji_check.clear_picture(row["image"], row["solution"])
    ),
    ("riddles", None): lambda row: (
        row["completion"] == row["thought"] and right_picture(row["image"], row["solution"])
    ),
    ("running_sums", None): lambda row: running_sums.solved(row["completion"], row["solution"]),
    ("shapes", "mmu"): lambda row: row["completion"] == row["solution"],
    ("shapes", None): lambda row: right_picture(row["image"], row["solution"]),
    ("sudoku", None): lambda row: sudoku.solved(row["completion"], row["solution"]),
}


@pytest.mark.parametrize("name, task, teacher", LESSONS)
def test_lessons_are_a_function_of_their_arguments_and_stay_in_their_split(name, task, teacher):
    make = import_named(LESSONS[name, task, teacher])
    assert make("train", 30, seed=1) == make("train", 30, seed=1)
    assert make("train", 30, seed=1) != make("train", 30, seed=2)
    assert make("test", 20) == make("test", 60)[:20]
    with pytest.raises(ValueError, match="dev"):
        make("dev", 1)
    for split in ("train", "test"):
        rows = make(split, 300)
        assert len(rows) == 300 and {SPLIT_OF[name](row) for row in rows} == {split}


def test_every_shipped_set_has_lessons():
    assert {name for name, task in BUILTIN_LESSONS if task is None} == BUILTIN_SETS.keys()


@pytest.mark.parametrize("name, task", RIGHT)
def test_without_a_name_every_answer_is_right(name, task):
    rows = import_named(LESSONS[name, task, None])("train", 200)
    assert all(map(RIGHT[name, task], rows))


@pytest.mark.parametrize("name, task, teacher", LESSONS)
def test_a_recipe_names_its_teacher(name, task, teacher):
    spec = partial(DatasetSpec, path=f"builtin:{name}", task=task, limit=3)
    rows = given_rows(spec(name=teacher))
    assert len(rows) == 3 and ({"image", "completion"} & {*rows.column_names})
    if task is None:
        assert "completion" not in load_rows(spec()).column_names
    with pytest.raises(RecipeError, match=rf"builtin:{name}': name='nobody': choose one of \[.*{teacher!r}"):
        given_rows(spec(name="nobody"))


def often(mistakes: list[bool], expected: float) -> bool:
    """Whether the share of ``mistakes`` is within four standard errors of ``expected``."""
    return abs(sum(mistakes) / len(mistakes) - expected) < 4 * (expected * (1 - expected) / len(mistakes)) ** 0.5


def test_the_careless_teacher_of_shapes_errs_as_often_as_it_says():
    """A redrawn word is the right one again once in 6 colours or 4 shapes, a redrawn number once in 8."""
    teacher = shapes_lessons
    answers, captions = (make("train", 4000) for make in (teacher.careless_answers, teacher.careless_pictures))
    for name, kinds in (("colour", len(shapes.COLOURS)), ("shape", len(shapes.SHAPES))):
        asked = [row["completion"] != row[name] for row in answers if row["question"] == name]
        told = [row[name] not in row["completion"].split() for row in answers if row["question"] == "caption"]
        drawn = [row[name] not in row["prompt"].split() for row in captions]
        other = 1 - 1 / kinds
        assert often(asked, teacher.WRONG_ANSWER * other) and often(told, teacher.WRONG_ANSWER / 2 * other)
        assert often(drawn, teacher.WRONG_WORD * other)
    shorter = [not {row["size"], row["position"]} <= {*row["prompt"].split()} for row in captions]
    assert often(shorter, teacher.SHORTER * (1 - 1 / len(shapes.FORMS)))
    sums = teacher.careless_sums("train", 4000)
    wrong = [not integer_match(row["completion"], row["solution"]) for row in sums]
    assert often(wrong, teacher.WRONG_SUM * (1 - 1 / len(arithmetic.SECOND)))
