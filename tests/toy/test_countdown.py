"""Countdown: the reward's values and bounds, the problems' laws, the shipped policy's start."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from unigrpo.rewards import get_reward
from unigrpo.toy import countdown as toy


reward = get_reward("countdown")


def score(completion, numbers=(3, 4, 2), target=14):
    return reward(["p"], [completion], numbers=[list(numbers)], target=[target])[0]


@pytest.mark.parametrize(
    "completion",
    [
        "3*4+2",
        " 2 + (3 * 4) ",
        "3*4+2=14",
        "((3))*4+2",
        "<answer>3*4+2</answer>",
        "<think>3+4+2=9</think>3*4+2",
        "<think>3-4</think> so \\boxed{3\\times4+2}",
        "$3 \\cdot 4+2$",
        "3×4+2",
        "3*4\n+2",
        "4*3+2",
        [{"role": "assistant", "content": "3*4+2"}],
    ],
)
def test_right_expressions(completion):
    assert score(completion) == 1.0


@pytest.mark.parametrize("completion", ["3+4+2", "(3+4)*2", "4/2-3", "3/(4-2)=13", "3*4+2 = 15"])
def test_the_right_numbers_with_another_value(completion):
    assert score(completion, target=13) == 0.1


def test_values_are_exact_fractions():
    assert score("8/(3-8/3)", (8, 3, 8, 3), 24) == 1.0
    assert score("1/3+1/3+1/3", (1, 3, 1, 3, 1, 3), 1) == 1.0
    assert score("9007199254740993*1", (9007199254740993, 1), 9007199254740992) == 0.1


@pytest.mark.parametrize("completion", [
    "", "14", "=14", "3*4", "3*4+2+2", "3*4+3-1", "34+2", "3**4+2", "3*4//2", "-3+4*2", "3*4+-2", "3 4 2", "3*4+2.0", "03*4+2",
    "3/(4-4)+2", "3*4+2, I think", "<think>3*4+2", "<answer></answer>3*4+2", "3*4+2#", "lambda: 3*4+2", "3*4+2 if 1 else 0",
    "[3*4+2]", "__import__('os').abort()", "3*4+2\x00",
])  # fmt: skip
def test_what_is_no_expression_over_the_numbers(completion):
    assert score(completion) == 0.0


def test_division_by_zero_has_no_value():
    assert score("3/(4-4)", (3, 4, 4), 0) == 0.0


@pytest.mark.parametrize(
    "piece",
    ["(", ")", "9", "9*", "(9+", "-", "**9", "9**9**", " ", "<answer>", "\\boxed{", "=", "\\times", "{", "</think>"],
)
def test_hostile_text_takes_no_time(piece):
    text = piece * (200_000 // len(piece))
    started = time.process_time()
    for own in (text, f"<answer>{text[:190]}</answer>", f"{piece * 90}1{')' * 90}", text + "3*4+2"):
        assert score(own) in (0.0, 0.1, 1.0)
    assert time.process_time() - started < 2.0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_sums_in_any_order_are_right(numbers, rng):
    text = "+".join(map(str, rng.sample(numbers, len(numbers))))
    assert score(text, numbers, sum(numbers)) == 1.0
    assert score(text, numbers, sum(numbers) + 1) == 0.1
    assert score(f"{text}+1", numbers, sum(numbers) + 1) == 0.0


def test_rows_it_does_not_apply_to():
    completions, targets = [object(), "1+2", "1+2", "1+2"], [3, None, 3, 3]
    assert reward(["p"] * 4, completions, numbers=[[1, 2], [1, 2], None, [2, 1]], target=targets) == [None] * 3 + [1.0]
    assert reward(["p"], [object()]) == [None]


@pytest.mark.parametrize(
    "column, values, cure",
    [
        ("numbers", [[], "12", 12, [1.5], [True, 2], [-1, 2], [[1]], {1, 2}], "give a list of whole numbers"),
        ("target", ["3", 3.5, False, [3]], "give a whole number"),
    ],
)
def test_a_bad_column_is_named(column, values, cure):
    for value in values:
        with pytest.raises(ValueError) as error:
            reward(["p"], ["1+2"], **{"numbers": [[1, 2]], "target": [3], column: [value]})
        assert all(part in str(error.value) for part in (f"`{column}`", repr(value), cure))


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match="`numbers` column"):
        reward(["p"], ["1+2"], target=[3])
    with pytest.raises(ValueError, match="`target` column"):
        reward(["p"], ["1+2"], numbers=[[1, 2]])
    with pytest.raises(ValueError):
        reward(["p"] * 2, ["1+2"] * 2, numbers=[[1, 2]], target=[3, 3])


@pytest.fixture(scope="module")
def every_row():
    return {split: toy.problems(split) for split in toy.SPLITS}


def test_splits_are_disjoint_whatever_the_order_of_the_numbers(every_row):
    names = {split: {(*sorted(row["numbers"]), row["target"]) for row in rows} for split, rows in every_row.items()}
    assert not names["train"] & names["test"]
    assert len(every_row["test"]) >= 500
    assert {len(row["numbers"]) for row in every_row["test"]} == set(toy.COUNTS)


@pytest.mark.smoke
def test_every_problem_is_solved_by_its_own_solution(every_row):
    rows = [row for own in every_row.values() for row in own]
    texts = [row["solution"] for row in rows]
    columns = {name: [row[name] for row in rows] for name in ("numbers", "target")}
    assert set(reward(texts, texts, **columns)) == {1.0}
    assert all(toy.solved(f"{text}={row['target']}", text) for text, row in zip(texts, rows, strict=True))
    assert all(row["prompt"] == f"Make {row['target']} from {' '.join(map(str, row['numbers']))}." for row in rows)


@given(st.text(alphabet="1234+-*/()", max_size=12))
def test_the_check_and_the_reward_agree(text):
    """Two parsers that share no code; this check has no product without a sign."""
    assume(not re.search(r"[0-9)]\(|\)[0-9]", text))
    assert toy.solved(text, "3*4+2") == (score(text) == 1.0)


def test_the_check_and_the_reward_agree_on_what_the_teacher_says():
    for row in toy.careless_lessons("train", 2000):
        own = score(row["completion"], row["numbers"], row["target"])
        assert toy.solved(row["completion"], row["solution"]) == (own == 1.0)


def test_the_teacher_errs_as_often_as_it_says():
    rows = toy.careless_lessons("train", 4000)
    values = [score(row["completion"], row["numbers"], row["target"]) for row in rows]
    # A mistake draws the right number or target again once in nine, or about as often.
    assert 0.0 < values.count(0.0) / 4000 < toy.WRONG_NUMBER
    right = values.count(1.0) / 4000
    assert 1 - toy.WRONG_NUMBER - toy.WRONG_TARGET < right < 1 - 0.7 * (toy.WRONG_NUMBER + toy.WRONG_TARGET)


def test_a_problem_that_comes_again_is_answered_anew():
    """So that a policy learns how often the teacher errs, and not which problems it gets wrong."""
    said: dict[str, set[bool]] = {}
    for row in toy.careless_lessons("train", 8000):
        said.setdefault(row["prompt"], set()).add(row["completion"] == row["solution"])
    assert sum(len(own) == 2 for own in said.values()) > 150
