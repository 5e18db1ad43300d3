"""Sudoku: the reward's values and bounds, the puzzles' laws, the shipped policy's start."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from unigrpo.rewards import get_reward
from unigrpo.toy import sudoku as toy


SOLUTION = "1234341221434321"
PUZZLE = "0230341221400321"
"""Cells 0, 3, 11 and 12 are empty."""

reward = get_reward("sudoku")


def score(completion, puzzle=PUZZLE, solution=SOLUTION):
    return reward(["p"], [completion], puzzle=[puzzle], solution=[solution])[0]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (SOLUTION, 1.0),
        (" 1234\n3412\n2143\n4321 ", 1.0),
        ("1 2|3 4\n3 4|1 2\n---+---\n2 1|4 3\n4 3|2 1", 1.0),
        (f"<think>1111</think><answer>{SOLUTION}</answer>", 1.0),
        (f"<think>a</think>\\boxed{{{SOLUTION}}}", 1.0),
        ([{"role": "assistant", "content": SOLUTION}], 1.0),
        ("2234341221434321", 0.75),
        ("2232341221424321", 0.25),
        ("2232341221421321", 0.0),
        ("1" * 16, 0.25),
        ("1444444444434444", 1.0),
        (PUZZLE, 0.0),
        (SOLUTION[:15], 0.0),
        (f"{SOLUTION}1", 0.0),
        ("", 0.0),
        ("no idea", 0.0),
        (f"<think>{SOLUTION}", 0.0),
        ("١٢٣٤٣٤١٢٢١٤٣٤٣٢١", 0.0),
    ],
)
def test_hand_table(completion, expected):
    assert score(completion) == expected


def test_empty_cells_are_zeros_or_points():
    assert score(SOLUTION, puzzle=".23.3412 214..321") == 1.0
    assert score("4" * 16, puzzle="." * 16) == 0.25


@pytest.mark.parametrize("piece", ["1", "1 ", "<answer>", "\\boxed{", "{", "</think>", " ", "\n"])
def test_hostile_text_takes_no_time(piece):
    started = time.process_time()
    score(piece * (1_000_000 // len(piece)))
    assert time.process_time() - started < 2.0


def test_rows_it_does_not_apply_to():
    puzzles, solutions = [PUZZLE, None, PUZZLE, PUZZLE], [SOLUTION, SOLUTION, None, SOLUTION]
    assert reward(["p"] * 4, [object(), *[SOLUTION] * 3], puzzle=puzzles, solution=solutions) == [None] * 3 + [1.0]
    assert reward(["p"], [object()]) == [None]


@pytest.mark.parametrize(
    "column, values, cure",
    [
        ("puzzle", ["", SOLUTION, PUZZLE[:-1], PUZZLE + "0", PUZZLE.replace("4", "5"), 1234, ["0"] * 16], "16 characters"),
        ("solution", ["", SOLUTION[:-1], PUZZLE, SOLUTION[::-1].replace("1", "2"), "5" * 16, 7], "16 digits"),
    ],
)  # fmt: skip
def test_a_bad_column_is_named(column, values, cure):
    for value in values:
        with pytest.raises(ValueError) as error:
            score(SOLUTION, **{column: value})
        assert all(part in str(error.value) for part in (f"`{column}`", repr(value), f"give {cure}"))


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match="`puzzle` column"):
        reward(["p"], [SOLUTION], solution=[SOLUTION])
    with pytest.raises(ValueError, match="`solution` column"):
        reward(["p"], [SOLUTION], puzzle=[PUZZLE])
    with pytest.raises(ValueError):
        reward(["p"] * 2, [SOLUTION] * 2, puzzle=[PUZZLE], solution=[SOLUTION])


def test_there_are_288_grids_and_all_obey_the_rules():
    assert len(set(toy.grids())) == 288
    for grid in toy.grids():
        rows = [grid[start : start + 4] for start in (0, 4, 8, 12)]
        boxes = [rows[r][c : c + 2] + rows[r + 1][c : c + 2] for r in (0, 2) for c in (0, 2)]
        for unit in (*rows, *map("".join, zip(*rows, strict=True)), *boxes):
            assert sorted(unit) == list(toy.DIGITS)


def test_splits_partition_the_grids():
    train, test = (set(toy.grids_of(split)) for split in toy.SPLITS)
    assert train | test == set(toy.grids()) and not train & test
    assert len(test) >= 20
    assert {row["solution"] for row in toy.problems("test", 600)} == test


def test_every_puzzle_has_one_solution_which_scores_one():
    rows = [row for split in toy.SPLITS for row in toy.problems(split, 600)]
    for row in rows:
        assert toy.completions(row["puzzle"]) == [row["solution"]]
        assert row["puzzle"].count(toy.EMPTY) in toy.BLANKS
        assert row["prompt"] == f"Solve {row['puzzle']}"
        assert toy.solved(row["solution"], row["solution"])
    columns = {name: [row[name] for row in rows] for name in ("puzzle", "solution")}
    assert set(reward(["p"] * len(rows), columns["solution"], **columns)) == {1.0}
    assert {row["puzzle"].count(toy.EMPTY) for row in rows} == set(toy.BLANKS)


def test_the_teacher_errs_as_often_as_it_says_and_keeps_what_is_given():
    cells: Counter[bool] = Counter()
    for row in toy.careless_lessons("train", 2000):
        for shown, right, said in zip(row["puzzle"], row["solution"], row["completion"], strict=True):
            assert shown in (toy.EMPTY, said)
            if shown == toy.EMPTY:
                cells[said == right] += 1
    wrong = 0.75 * toy.WRONG_CELL
    assert abs(cells[False] / cells.total() - wrong) < 4 * (wrong * (1 - wrong) / cells.total()) ** 0.5
