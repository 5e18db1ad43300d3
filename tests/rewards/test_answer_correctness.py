"""``answer_correctness``: numbers with units, option letters, yes and no, words; hand tables, laws, cost."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unigrpo.rewards import answer_correctness

from ..support import ROOT


def score(completion, solution):
    return answer_correctness(["p"], [completion], solution=[solution])[0]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("solution", "right", "wrong"),
    [
        (
            "<answer> 145° </answer>",
            [
                "145",
                "145°",
                "<answer>145</answer>",
                "<answer> 145° </answer>",
                "<answer>145 degrees</answer>",
                "<answer>$145^\\circ$</answer>",
                "<think>It is 35°, so 180 - 35.</think><answer>145°</answer>",
                "<think>35</think>\\boxed{145^\\circ}",
                "<think>35</think>The angle is 145°.",
                "<answer>145.0</answer>",
                "<answer>∠ABC = 145°</answer>",
                "<answer>B. 145°</answer>",
                "<answer>(B) 145°</answer>",
                "<answer>The angle is 145 degrees</answer>",
                "<think>a</think><answer>35</answer> no, <answer>145</answer>",
            ],
            [
                "146",
                "-145",
                "<answer>35</answer> 145",
                "<think>145</think><answer>35</answer>",
                "<think>145</think>",
                "<think>145</think>I do not know.",
                "<think>It is 145",
                "<answer></answer>145",
                "<answer>145+0</answer>",
                "<answer>5 or 145 or 6</answer>",
                "<answer>B</answer>",
                "",
            ],
        ),
        (7, ["7", "<answer>7</answer>", "There are 7 cubes.", "Answer: 7"], ["8", "seven", "7 or 8", "7+0"]),
        (2.5, ["2.5", "5/2", "<answer>2.50 cm</answer>"], ["2", "25"]),
        ("3", ["<answer>3</answer>", "\\boxed{3}"], ["<answer>13</answer>", "<answer>5-3</answer>", "\\boxed{x^3}"]),
        ("1/2", ["0.5", "\\frac{1}{2}", "50%"], ["2"]),
        ("1,234 m", ["1234", "<answer>1,234</answer>", "1,234m", "1234 s"], ["1.234", "1234x"]),
        ("10米", ["10", "10 m", "<answer>10m^2</answer>"], ["10π", "<answer>10x</answer>"]),
        ("2π", ["2π", "<answer>2π.</answer>"], ["2", "2 m"]),
        (
            "B",
            [
                "B",
                "b",
                "(B)",
                "B.",
                "B)",
                "<answer>B</answer>",
                "<answer>(b)</answer>",
                "<answer> B. 145° </answer>",
                "<answer>B: a red cube</answer>",
                "<answer>(B) 145°</answer>",
                "\\boxed{B}",
                "\\boxed{\\text{B}}",
                "<think>A or B?</think>B",
                "<think>(A)?</think>The answer is B.",
                "<think>a</think>The answer is (B).",
                "<think>a</think>The correct option is **B**.",
                "<think>a</think>Not (A) but (B).",
                "<answer>Option B</answer>",
            ],
            [
                "A",
                "<answer>A</answer> B",
                "<answer>AB</answer>",
                "<answer>A, B</answer>",
                "<think>B</think>A",
                "<think>B",
                "By the way",
                "B is better than A, so the answer is A",
                "The answer is Bob",
                "145",
                "",
            ],
        ),
        ("(C)", ["C", "<answer>(C)</answer>"], ["(D)"]),
        ("d.", ["D"], ["c"]),
        (
            "yes",
            [
                "yes",
                "Yes.",
                "<answer> YES </answer>",
                "\\boxed{\\text{yes}}",
                "Yes, there is.",
                "true",
                "The answer is yes.",
            ],
            ["no", "<answer>no</answer>", "No, yes", "yesterday", "not yes", ""],
        ),
        ("No", ["no", "No, there is none.", "False"], ["Yes", "not", "nothing", "none"]),
        (True, ["yes", "true"], ["no", "1"]),
        (False, ["no", "False"], ["yes"]),
        (
            "<answer> red cube </answer>",
            [
                "red cube",
                "A red cube.",
                "<answer>Red  Cube</answer>",
                "\\boxed{\\text{red cube}}",
                "The answer is: red cube.",
            ],
            ["cube", "red", "<answer>blue cube</answer>", "red cubes", "not a red cube", "<answer>red</answer> cube"],
        ),
        ("metal", ["<think>rubber?</think><answer>metal</answer>", "“Metal”"], ["<answer>rubber</answer>"]),
        ("so \\boxed{2\\sqrt{3}}", ["\\boxed{2\\sqrt{3}}", "<answer>$2\\sqrt{3}$</answer>"], ["3", "\\sqrt{3}"]),
        ("working #### 72", ["72", "<answer>72</answer>"], ["27"]),
        ("ｆｕｌｌ", ["full"], ["fill"]),
    ],
)
def test_hand_table(solution, right, wrong):
    assert {text: score(text, solution) for text in right} == dict.fromkeys(right, 1.0)
    assert {text: score(text, solution) for text in wrong} == dict.fromkeys(wrong, 0.0)


@pytest.mark.parametrize("solution", [None, "", "  ", "<answer></answer>", "...", "x" * 300, [3], float("nan")])
def test_without_a_usable_solution_there_is_no_score(solution):
    logged = {}
    scores = answer_correctness(["p"] * 2, ["3", "4"], [solution, "4"], log_metric=logged.__setitem__)
    assert scores == [None, 1.0] and logged == {"answer_correctness/unparsable_gold": 1.0}


def test_what_is_not_text_has_no_score():
    logged = {}
    completions = [object(), None, [{"role": "assistant", "content": "<answer>B</answer>"}], ["B"]]
    scores = answer_correctness(["p"] * 4, completions, ["B"] * 4, task=["t2i"] * 4, log_metric=logged.__setitem__)
    assert scores == [None, None, 1.0, None] and logged == {"answer_correctness/unparsable_gold": 0.0}


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


@given(st.text(max_size=60), st.text(max_size=30))
def test_any_text_is_scored(completion, solution):
    assert score(completion, solution) in (None, 0.0, 1.0)


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
    started = time.perf_counter()
    score(text, solution)
    score("<think>a</think><answer>" + text + "</answer>", solution)
    score(text, text)
    assert time.perf_counter() - started < 2.0


def test_it_needs_no_torch():
    code = """
import sys
from unigrpo.rewards import answer_correctness
assert answer_correctness(["p"], ["B"], ["B"]) == [1.0]
assert not {"torch", "transformers", "math_verify"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
