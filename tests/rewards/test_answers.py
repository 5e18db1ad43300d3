"""Finding the answer in a completion and in a solution column, without the worker."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unigrpo.rewards._answers import MAX_EXPRESSION, gold_answer, predicted_answer
from unigrpo.rewards._said import said_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{5}", "5"),
        ("\\boxed{5} or rather \\boxed{6}. <answer>7</answer> 8", "6"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {5}", "5"),
        ("\\\\boxed{5}", "5"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{\\left\\{ x \\right.}", "\\left\\{ x \\right."),
        ("\\boxed{a \\\\{b}}", "a \\\\{b}"),
        ("{ \\boxed{5}", "5"),
        ("} \\boxed{5}", "5"),
        ("\\boxed{5} then \\boxed{6", "5"),
        ("\\boxed{ $5$ }", "5"),
        ("\\boxed{}", None),
        ("\\boxed{5} then \\boxed{}", None),
        pytest.param("\\boxed{" + "1+" * MAX_EXPRESSION + "1}", None, id="long box"),
        ("<answer>5</answer> 6", "5"),
        ("<answer>5</answer><answer>x+1</answer> 6", "x+1"),
        ("<answer>Natalia sold 72 clips</answer> 6", "72"),
        ("<answer>72 clips per day</answer>", "72 clips per day"),
        ("<answer>$\\frac{3}{4}$</answer>", "\\frac{3}{4}"),
        ("<answer>5", "5"),
        ("</answer> 5 <answer>", "5"),
        ("<think>6</think> It is 5 of them.", "5"),
        ("<think>6</think><think>7</think> It is 5.", "5"),
        ("<think>6</think> It is what I said.", None),
        ("first 5, then 6", "6"),
        ("Alice", "Alice"),
        ("so it is what we had before", None),
        ("", None),
        pytest.param("7" + " ." * 15_000, None, id="cut off"),
    ],
)
def test_predicted_answer(text, answer):
    assert predicted_answer(text) == answer


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("48/2 = <<48/2=24>>24 clips.\n#### 72", "72"),
        ("#### 1,234", "1,234"),
        ("#### 5\n#### 6", "6"),
        ("#### 72\nand a note", "72"),
        ("#### ", None),
        ("$\\frac{1}{2}$", "\\frac{1}{2}"),
        ("\\(x\\)", "x"),
        ("\\[x\\]", "x"),
        ("$$x$$", "x"),
        ("so the area is \\boxed{x^2}.", "x^2"),
        ("72 apples", "72 apples"),
        ("72", "72"),
        (72, "72"),
        (-3, "-3"),
        (0.5, "0.5"),
        (1e-7, "1e-07"),
        (Fraction(1, 2), "0.5"),
        (None, None),
        (True, None),
        ("", None),
        ("   ", None),
        ("$ $", None),
        ("the answer is 72", "72"),
        ("It took 72 of them", None),
        ("New York", "New York"),
        ("no number at all", None),
        (float("nan"), None),
        (float("inf"), None),
        pytest.param(10**10_000, None, id="huge integer"),
        pytest.param("9" * 2000, None, id="many digits"),
        ([5], "5"),
        (["\\frac{1}{2}"], "\\frac{1}{2}"),
        ([5, 6], None),
    ],
)
def test_gold_answer(solution, answer):
    assert gold_answer(solution) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so it is 72.", "72"),
        ("1 + 2 = 3", "1 + 2 = 3"),
        ("it costs $1,234.50 in all", "$1,234.50"),
        ("it costs \\$18.", "\\$18"),
        ("minus: −7", "-7"),
        ("5-3", "5-3"),
        ("= -3", "-3"),
        ("a debt of -$40", "-$40"),
        ("three quarters, 3/4 of it", "3/4"),
        ("-\\dfrac{1}{2}", "-\\dfrac{1}{2}"),
        ("about 50\\% of it", "50\\%"),
        ("25 m2", "25"),
        ("25 m^2", "25"),
        ("the set 1,2", "1, 2"),
        ("In 2019, 5 people", "5"),
        ("on 1/2/2024", "1/2/2024"),
        ("1.5e-3", "1.5e-3"),
        ("$2$ and $\\sqrt{5}$", "\\sqrt{5}"),
        ("it is $5 of $6", "$6"),
        ("no digits", None),
        ("", None),
    ],
)
def test_the_last_expression_of_a_text(text, answer):
    assert said_answer(text) == answer


PIECES = st.sampled_from(["\\boxed{", "}", "{", "<answer>", "</answer>", "</think>", "$", "-", "1", ",000", "/", "."])
SOUP = st.lists(st.one_of(PIECES, st.text(max_size=4), st.characters()), max_size=40).map("".join)


@given(SOUP)
@example("\x00")
@example("\ud800 5")
@example("1e999")
def test_any_text_is_read_without_an_error(text):
    for answer in (predicted_answer(text), gold_answer(text)):
        assert answer is None or 0 < len(answer) <= MAX_EXPRESSION
    said_answer(text)


@pytest.mark.smoke
@given(SOUP, st.integers(-999, 999))
def test_a_final_box_wins(text, value):
    text = text.replace("<think>", "")
    assert predicted_answer(f"{text} \\boxed{{{value}}}") == str(value)


@pytest.mark.parametrize(
    "piece",
    [
        "1,111",
        "111,",
        "1/",
        "-",
        "\\boxed{",
        "{",
        "\\frac{1",
        "<answer>",
        "1.1",
        "\\boxed  ",
        "1e1",
        "$",
        "ab ",
        "\\text{",
    ],
)
def test_a_megabyte_takes_no_time(piece):
    text = piece * (1_000_000 // len(piece)) + "1111"
    started = time.process_time()
    predicted_answer(text), gold_answer(text), predicted_answer(f"<answer>{text[:19_000]}</answer>")
    assert time.process_time() - started < 2.0
