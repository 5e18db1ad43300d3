"""Sudoku of 4 x 4 cells: fill in a grid whose rows, columns and 2 x 2 boxes hold 1 to 4 once each.

A puzzle is 16 characters, row after row, with ``0`` for an empty cell; the answer is all 16 digits. There are 288 grids, of
which one in six is held out. ``making/README.md`` says how ``builtin:sudoku`` is made.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any


SPLITS = ("train", "test")

DIGITS = "1234"
EMPTY = "0"
CELLS = 16
BLANKS = (4, 5, 6)
"""How many cells of a puzzle may be empty."""

PROMPT = "Solve {puzzle}"
WORDS = ("Solve",)
"""Words of the prompt, one token each."""

SAMPLING = {"max_completion_length": 17, "steps": 8, "block_length": 17}
"""The 16 digits and a stop token, in one block: any cell may be written first."""

HELD_OUT_ONE_IN = 6

WRONG_CELL = 0.5
"""Chance that the teacher redraws the digit of an empty cell; one redrawn digit in four is the right one."""


@cache
def grids() -> tuple[str, ...]:
    """All 288 grids in increasing order."""
    return tuple(completions(EMPTY * CELLS))


def completions(puzzle: str) -> list[str]:
    """All grids that agree with ``puzzle``, in increasing order; a puzzle proper has exactly one."""
    place = puzzle.find(EMPTY)
    if place < 0:
        return [puzzle]
    seen = {puzzle[other] for other in _neighbours()[place]}
    tried = (puzzle[:place] + digit + puzzle[place + 1 :] for digit in DIGITS if digit not in seen)
    return [grid for own in tried for grid in completions(own)]


def grids_of(split: str) -> list[str]:
    """The grids of a split, in increasing order.

    Raises:
        ValueError: ``split`` is not one of ``SPLITS``.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose one of {SPLITS}")
    return [grid for grid in grids() if split_of(grid) == split]


def split_of(grid: str) -> str:
    """The split that owns a grid, and with it all puzzles that it solves."""
    return "test" if zlib.crc32(grid.encode()) % HELD_OUT_ONE_IN == 0 else "train"


def problems(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a split, a function of the arguments alone. Every puzzle has exactly one solution.

    Args:
        split: ``"train"`` or ``"test"``; a grid of one never occurs in the other.
        n: number of rows; None = one for each grid. Beyond that, grids repeat with other cells empty.
        seed: decides the order of the grids and which cells are empty.

    Returns:
        dictionaries with ``prompt`` (str), ``puzzle`` and ``solution`` (16 characters each).
    """
    rng = random.Random(f"sudoku/{split}/{seed}")
    members = grids_of(split)
    endless = _shuffled_forever(members, rng)
    count = len(members) if n is None else n
    return [_row(next(endless), rng) for _ in range(count)]


def lessons(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """``problems`` with their grids in ``completion``."""
    return [{**row, "completion": row["solution"]} for row in problems(split, n, seed)]


def careless_lessons(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """``problems`` with the answers of a teacher that errs, in empty cells only, with the chance above."""
    rng = random.Random(f"sudoku, careless/{split}/{seed}")
    return [{**row, "completion": _careless_answer(row, rng)} for row in problems(split, n, seed)]


def _careless_answer(row: dict[str, Any], rng: random.Random) -> str:
    cells = zip(row["puzzle"], row["solution"], strict=True)
    said = (rng.choice(DIGITS) if given == EMPTY and rng.random() < WRONG_CELL else right for given, right in cells)
    return "".join(said)


def solved(completion: str, solution: str) -> bool:
    """Whether a completion is the grid ``solution``, white space aside."""
    return "".join(completion.split()) == solution


@cache
def _neighbours() -> list[set[int]]:
    """For each cell those that share its row, its column or its box."""
    homes = [{("row", i // 4), ("column", i % 4), ("box", i // 8, i % 4 // 2)} for i in range(CELLS)]
    return [{j for j in range(CELLS) if j != i and homes[i] & homes[j]} for i in range(CELLS)]


def _shuffled_forever(items: list[str], rng: random.Random) -> Iterator[str]:
    while True:
        yield from rng.sample(items, len(items))


def _row(grid: str, rng: random.Random) -> dict[str, Any]:
    while True:
        blank = set(rng.sample(range(CELLS), rng.choice(BLANKS)))
        puzzle = "".join(EMPTY if place in blank else digit for place, digit in enumerate(grid))
        if len(completions(puzzle)) == 1:
            return {"prompt": PROMPT.format(puzzle=puzzle), "puzzle": puzzle, "solution": grid}
