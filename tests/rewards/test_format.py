"""``think_format``: hand table, cost and laws."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unigrpo.rewards import think_format


class Image:
    """Stands for a PIL image."""

    size = (8, 8)


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("<think>2 + 3</think>5", 1.0),
        ("<think> 2 + 3 </think> 5", 1.0),
        ("\n<think>\nlong\nreasoning\n</think>\n\n5\n", 1.0),
        ("<think>a < b > c</think> x < 5", 1.0),
        ("<think>a</think><answer>5</answer>", 1.0),
        ("", 0.0),
        ("5", 0.0),
        ("<think></think>5", 0.0),
        ("<think> \n </think>5", 0.0),
        ("<think>a</think>", 0.0),
        ("<think>a</think> \n", 0.0),
        ("<think>a", 0.0),
        ("a</think>5", 0.0),
        ("so <think>a</think>5", 0.0),
        ("<think><think>a</think>5", 0.0),
        ("<think>a</think></think>5", 0.0),
        ("<think>a</think>5<think>", 0.0),
        ("<think>a</think>5</think>", 0.0),
        ("<think>a</think>5<think>b</think>6", 0.0),
        ("</think>a<think>5", 0.0),
        ("<THINK>a</THINK>5", 0.0),
        ("< think >a</ think >5", 0.0),
        ("<think>a<think/>5", 0.0),
        ([{"role": "assistant", "content": "<think>a</think>5"}], 1.0),
        ([{"role": "assistant", "content": "5"}], 0.0),
        (Image(), None),
        (None, None),
    ],
)
def test_hand_table(completion, score):
    assert think_format(["p"], [completion], completion_ids=None, task=["mmu"], trainer_state=None) == [score]


def test_one_score_a_row_in_order():
    assert think_format(["p"] * 3, ["<think>a</think>5", Image(), "5"]) == [1.0, None, 0.0]


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think>a</think>", "<", "<thi", " \n", "<think> "])
def test_a_megabyte_takes_no_time(piece):
    text = piece * (1_000_000 // len(piece))
    started = time.perf_counter()
    assert think_format(["p"], [text]) == [0.0]
    assert time.perf_counter() - started < 0.5


SOUP = st.lists(st.one_of(st.sampled_from(["<think>", "</think>", " ", "\n", "<", "think>"]), st.text(max_size=5)))


@pytest.mark.smoke
@given(SOUP.map("".join))
def test_the_score_is_the_definition(text):
    score = think_format(["p"], [text])[0]
    head, _, rest = text.partition("<think>")
    reasoning, closed, answer = rest.partition("</think>")
    tags = [(text.count("<think>"), text.count("</think>"))]
    shape = not head.strip() and bool(closed) and bool(reasoning.strip()) and bool(answer.strip())
    assert score == float(shape and tags == [(1, 1)])


@given(st.text(), st.text())
def test_any_reasoning_and_answer_without_tags_is_well_formed(reasoning, answer):
    reasoning, answer = f"r{reasoning}".replace("<", ""), f"a{answer}".replace("<", "")
    assert think_format(["p"], [f"<think>{reasoning}</think>{answer}"]) == [1.0]
