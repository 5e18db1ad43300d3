"""Puzzles whose answers can be checked: Countdown expressions and Sudoku grids of 4 x 4."""

from __future__ import annotations

import re
from fractions import Fraction
from numbers import Integral
from typing import Any

from ._answers import marked_answer, spoken, usable
from ._exact import Expression, evaluate, rational
from ._lists import split_at
from ._notation import normalised
from .text import completion_text


MAX_CHARACTERS = 200
"""A longer Countdown expression is none."""

WRONG_VALUE = 0.1
"""Score of a Countdown expression over the right numbers that misses the target."""

CELLS = 16
"""Of a Sudoku grid."""

_TIMES = re.compile(r"(?<=[0-9) ])[xX](?=[0-9( ])")
_DIGIT = re.compile("[0-9]")


def countdown(
    prompts: list,
    completions: list,
    numbers: list | None = None,
    target: list | None = None,
    *,
    opened: bool = False,
    **_: Any,
) -> list[float | None]:
    """Does an expression use every number exactly once and make the target? Range {0.0, 0.1, 1.0}.

    1.0 where it does, 0.1 where it uses exactly those numbers and has another value, 0.0 where it is no such expression.
    The answer is looked for behind the last ``</think>``: the last ``\\boxed{}``, else the last ``<answer></answer>``, else
    all that is said. It holds whole numbers, ``+ - * /`` between them as people and LaTeX write these (``×``, ``x``,
    ``\\cdot``, ``\\frac{}{}``, nothing before a bracket) and brackets. The value may stand on the other side of ``=``: a false
    one is another value. A number that is listed twice is used twice. A sign before a number is no operator: with signs,
    powers, decimals, leading zeros or words it is no expression, and so it is with a division by zero. Values are exact
    fractions. None where a completion is not text or its ``numbers`` or ``target`` is None.

    Args:
        numbers: dataset column: a list of whole numbers of at least 0, such as ``[3, 4, 2]``.
        target: dataset column: a whole number.
        opened: the prompt opens the thought, so that a completion without ``</think>`` is all thought.

    Raises:
        ValueError: text completions without these columns, a column of another length, or a value that is none of these.
    """
    texts = [completion_text(completion) for completion in completions]
    numbers = _column("countdown", "numbers", numbers, texts)
    target = _column("countdown", "target", target, texts)
    return [
        None
        if text is None or own is None or wanted is None
        else _made(_said(text, opened), _numbers(own), _target(wanted))
        for text, own, wanted in zip(texts, numbers, target, strict=True)
    ]


def sudoku(
    prompts: list,
    completions: list,
    puzzle: list | None = None,
    solution: list | None = None,
    *,
    opened: bool = False,
    **_: Any,
) -> list[float | None]:
    """Share of the empty cells of a 4 x 4 Sudoku that are filled in right; range [0, 1].

    Right is what the column ``solution`` says, so a puzzle should have one solution; cells that were given are not looked
    at. The answer is looked for as ``countdown`` does, and its digits count in order, whatever stands between them: an
    answer of 16 digits is a grid, row after row, any other scores 0.0. None where a completion is not text or its
    ``puzzle`` or ``solution`` is None.

    Args:
        puzzle: dataset column: 16 characters, ``1`` to ``4``, and ``0`` or ``.`` for an empty cell; at least one is empty.
        solution: dataset column: 16 digits from 1 to 4 that agree with the puzzle.
        opened: as in ``countdown``.

    Raises:
        ValueError: text completions without these columns, a column of another length, or a value that is none of these.
    """
    texts = [completion_text(completion) for completion in completions]
    puzzle = _column("sudoku", "puzzle", puzzle, texts)
    solution = _column("sudoku", "solution", solution, texts)
    return [
        None if text is None or given is None or grid is None else _share(_said(text, opened), *_grids(given, grid))
        for text, given, grid in zip(texts, puzzle, solution, strict=True)
    ]


def _column(reward: str, name: str, values: list | None, texts: list[str | None]) -> list:
    if values is not None:
        return values
    if any(text is not None for text in texts):
        raise ValueError(f"{reward} needs a `{name}` column in the dataset, and there is none")
    return [None] * len(texts)


def _said(text: str, opened: bool) -> str:
    said = spoken(text, opened)
    marked, _ = marked_answer(said)
    return said if marked is None else marked


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _numbers(own: Any) -> list[int]:
    if not isinstance(own, list | tuple) or not own or not all(_is_whole(value) and value >= 0 for value in own):
        raise ValueError(f"countdown: column `numbers` has {own!r}; give a list of whole numbers, such as [3, 4, 2]")
    return sorted(int(value) for value in own)


def _target(wanted: Any) -> int:
    if not _is_whole(wanted):
        raise ValueError(f"countdown: column `target` has {wanted!r}; give a whole number, such as 14")
    return int(wanted)


def _made(answer: str, numbers: list[int], target: int) -> float:
    written = normalised(usable(answer) or "").removesuffix(".")
    sides = split_at(_TIMES.sub("*", written), "=") if len(written) <= MAX_CHARACTERS else []
    read = [evaluate(side) for side in sides]
    made = [own for own in read if own is not None and _uses(own, numbers)]
    if not made or len(sides) > 2:
        return 0.0
    values = {None if own is None else rational(own.value) for own in read}
    return 1.0 if values == {Fraction(target)} else WRONG_VALUE


def _uses(expression: Expression, numbers: list[int]) -> bool:
    """Is it an expression of the four operators over exactly these numbers?"""
    if (
        expression.signed
        or expression.other
        or any(not own.replace(",", "").isdecimal() for own in expression.numbers)
    ):
        return False
    used = [own.replace(",", "") for own in expression.numbers]
    return all(own == "0" or own[0] != "0" for own in used) and sorted(map(int, used)) == numbers


def _grids(given: Any, grid: Any) -> tuple[str, str]:
    """Puzzle and solution without white space, ``0`` for an empty cell."""
    puzzle = "".join(given.split()).replace(".", "0") if isinstance(given, str) else ""
    if not re.fullmatch("[0-4]{16}", puzzle) or "0" not in puzzle:
        raise ValueError(
            f"sudoku: column `puzzle` has {given!r}; give 16 characters, 1 to 4 with 0 or . for the empty cells"
        )
    solution = "".join(grid.split()) if isinstance(grid, str) else ""
    fits = re.fullmatch("[1-4]{16}", solution) and all(a in ("0", b) for a, b in zip(puzzle, solution, strict=True))
    if not fits:
        raise ValueError(
            f"sudoku: column `solution` has {grid!r}; give 16 digits from 1 to 4 that agree with {given!r}"
        )
    return puzzle, solution


def _share(text: str, puzzle: str, solution: str) -> float:
    digits = _DIGIT.findall(text)
    if len(digits) != CELLS:
        return 0.0
    right = [own == wanted for own, wanted, given in zip(digits, solution, puzzle, strict=True) if given == "0"]
    return sum(right) / len(right)
