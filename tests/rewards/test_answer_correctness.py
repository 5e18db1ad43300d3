"""``answer_correctness``: columns, laws, cost. ``answers.json`` has its values."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unigrpo.rewards import answer_correctness


def score(completion, solution):
    return answer_correctness(["p"], [completion], solution=[solution])[0]


@pytest.mark.parametrize("solution", [None, "", "  ", "<answer></answer>", "...", "x" * 300, [3, 4], float("nan")])
def test_without_a_usable_solution_there_is_no_score(solution):
    logged = {}
    scores = answer_correctness(["p"] * 2, ["3", "4"], [solution, "4"], log_metric=logged.__setitem__)
    assert scores == [None, 1.0] and logged == {"answer_correctness/unparsable_gold": 1.0}


def test_what_is_not_text_has_no_score():
    logged = {}
    completions = [object(), None, [{"role": "assistant", "content": "<answer>B</answer>"}], ["B"]]
    scores = answer_correctness(["p"] * 4, completions, ["B"] * 4, task=["t2i"] * 4, log_metric=logged.__setitem__)
    assert scores == [None, None, 1.0, None] and logged == {"answer_correctness/unparsable_gold": 0.0}


@pytest.mark.smoke
def test_the_solution_column():
    assert answer_correctness(["p"], [object()]) == [None]
    with pytest.raises(ValueError, match="`solution` column"):
        answer_correctness(["p"], ["3"])
    with pytest.raises(ValueError):
        answer_correctness(["p", "q"], ["3", "4"], solution=["3"])


@given(st.sampled_from(["145°", "7", "B", "(C)", "yes", "no", "red cube", "1/2", "3.5 cm"]))
def test_every_solution_answers_itself_in_every_form(answer):
    for form in ("{}", "<answer>{}</answer>", "<think>x</think> {}", "<think>x</think>\n<answer> {} </answer>"):
        assert score(form.format(answer), answer) == 1.0
        assert score(form.format(answer), f"<answer> {answer} </answer>") == 1.0


PIECES = [
    "<answer>",
    "</think>",
    "<think>",
    "\\boxed{",
    "(",
    "(B",
    "answer is ",
    "answer is",
    "B",
    "1",
    "1,",
    "\\text{",
]


@pytest.mark.parametrize(
    "piece", [*PIECES, "=", " ", "a ", "- ", "\\text {", "option  ", "°", "ﷺ", "{", "}", "$", "*"]
)
@pytest.mark.parametrize("solution", ["145°", "B", "yes", "red cube"])
def test_time_is_linear(piece, solution):
    text = piece * (200_000 // len(piece))
    started = time.process_time()
    score(text, solution)
    score("<think>a</think><answer>" + text + "</answer>", solution)
    score(text, text)
    assert time.process_time() - started < 2.0
