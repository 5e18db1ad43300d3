"""Finding the answer in a completion and in a solution column, without the worker."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unigrpo.rewards._answers import MAX_EXPRESSION, gold_answer, predicted_answer
from unigrpo.rewards._said import said_answer


def read(function, table):
    """Each text of the table is read as the key that it stands under."""
    for answer, texts in table.items():
        assert [(text, found) for text in texts if (found := function(text)) != answer] == []


def test_predicted_answer():
    read(
        predicted_answer,
        {
            "5": [
                *("\\boxed{5}", "\\boxed {5}", "\\\\boxed{5}", "\\boxed{\\boxed{5}}", "\\boxed{ $5$ }"),
                *("{ \\boxed{5}", "} \\boxed{5}", "\\boxed{5} then \\boxed{6"),
                *("<answer>5</answer> 6", "<answer>5", "</answer> 5 <answer>"),
                *("<think>6</think> It is 5 of them.", "<think>6</think><think>7</think> It is 5."),
                *("I box it with \\boxed \n\nThe answer is 5", "With \\boxed . So the answer is 5"),
                *("\\boxed{5}. The \\boxed command is asked for.", "\\boxed 5 as asked for: in \\boxed form."),
            ],
            "6": ["\\boxed{5} or rather \\boxed{6}. <answer>7</answer> 8", "first 5, then 6"],
            "\\frac{1}{2}": ["\\boxed{\\frac{1}{2}}"],
            "\\frac{3}{4}": ["<answer>$\\frac{3}{4}$</answer>"],
            "\\{1,2\\}": ["\\boxed{\\{1,2\\}}"],
            "\\left\\{ x \\right.": ["\\boxed{\\left\\{ x \\right.}"],
            "a \\\\{b}": ["\\boxed{a \\\\{b}}"],
            "x+1": ["<answer>5</answer><answer>x+1</answer> 6"],
            "72": ["<answer>Natalia sold 72 clips</answer> 6"],
            "72 clips per day": ["<answer>72 clips per day</answer>"],
            "Alice": ["Alice"],
            None: [
                *("\\boxed{}", "\\boxed{5} then \\boxed{}", "\\boxed{" + "1+" * MAX_EXPRESSION + "1}"),
                *("<think>6</think> It is what I said.", "so it is what we had before", "", "7" + " ." * 15_000),
            ],
        },
    )


def test_gold_answer():
    read(
        gold_answer,
        {
            "72": ["48/2 = <<48/2=24>>24 clips.\n#### 72", "#### 72\nand a note", "72", 72, "the answer is 72"],
            "1,234": ["#### 1,234"],
            "6": ["#### 5\n#### 6"],
            "\\frac{1}{2}": ["$\\frac{1}{2}$", ["\\frac{1}{2}"]],
            "x": ["\\(x\\)", "\\[x\\]", "$$x$$"],
            "x^2": ["so the area is \\boxed{x^2}."],
            "72 apples": ["72 apples"],
            "-3": [-3],
            "0.5": [0.5, Fraction(1, 2)],
            "1e-07": [1e-7],
            "5": [[5]],
            "New York": ["New York"],
            None: [
                *("#### ", None, True, "", "   ", "$ $", "It took 72 of them", "no number at all", [5, 6]),
                *(float("nan"), float("inf"), 10**10_000, "9" * 2000),
            ],
        },
    )


def test_the_last_expression_of_a_text():
    read(
        said_answer,
        {
            "72": ["so it is 72."],
            "1 + 2 = 3": ["1 + 2 = 3"],
            "$1,234.50": ["it costs $1,234.50 in all"],
            "\\$18": ["it costs \\$18."],
            "-7": ["minus: −7"],
            "5-3": ["5-3"],
            "-3": ["= -3"],
            "-$40": ["a debt of -$40"],
            "3/4": ["three quarters, 3/4 of it"],
            "-\\dfrac{1}{2}": ["-\\dfrac{1}{2}"],
            "50\\%": ["about 50\\% of it"],
            "25": ["25 m2", "25 m^2"],
            "1, 2": ["the set 1,2"],
            "5": ["In 2019, 5 people"],
            "1/2/2024": ["on 1/2/2024"],
            "1.5e-3": ["1.5e-3"],
            "\\sqrt{5}": ["$2$ and $\\sqrt{5}$"],
            "$6": ["it is $5 of $6"],
            None: ["no digits", ""],
        },
    )


PIECES = st.sampled_from(["\\boxed{", "}", "{", "<answer>", "</answer>", "</think>", "$", "-", "1", ",000", "/", "."])
SOUP = st.lists(st.one_of(PIECES, st.text(max_size=4), st.characters()), max_size=40).map("".join)


@pytest.mark.smoke
@given(SOUP, st.integers(-999, 999))
def test_a_final_box_wins(text, value):
    text = text.replace("<think>", "")
    assert predicted_answer(f"{text} \\boxed{{{value}}}") == str(value)


BITS = [
    *("1,111", "111,", "1/", "-", "\\boxed{", "{", "\\frac{1"),
    *("<answer>", "1.1", "\\boxed  ", "1e1", "$", "ab ", "\\text{"),
]


@pytest.mark.parametrize("piece", BITS)
def test_a_megabyte_takes_no_time(piece):
    text = piece * (1_000_000 // len(piece)) + "1111"
    started = time.process_time()
    predicted_answer(text), gold_answer(text), predicted_answer(f"<answer>{text[:19_000]}</answer>")
    assert time.process_time() - started < 2.0
