"""``think_format``: cost and laws. ``answers.json`` has its values."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unigrpo.rewards import think_format

from ..support.reward_rows import RED


def test_templates_that_open_the_thought():
    texts = ["a</think>5", "<think>a</think>5", "a", "</think>5", "a</think>", "a</think>5</think>", " \n</think>5"]
    assert think_format(["p"] * 7, texts, opened=True) == [1.0, *[0.0] * 6]
    assert think_format(["p"], ["a</think>5"]) == [0.0]


def test_one_score_a_row_in_order():
    assert think_format(["p"] * 3, ["<think>a</think>5", RED, "5"]) == [1.0, None, 0.0]
    assert think_format(["p"] * 2, [None, [{"role": "assistant", "content": "<think>a</think>5"}]]) == [None, 1.0]


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think>a</think>", "<", "<thi", " \n", "<think> "])
def test_a_megabyte_takes_no_time(piece):
    text = piece * (1_000_000 // len(piece))
    started = time.process_time()
    assert think_format(["p"], [text]) == [0.0]
    assert time.process_time() - started < 2.0


SOUP = st.lists(st.one_of(st.sampled_from(["<think>", "</think>", " ", "\n", "<", "think>"]), st.text(max_size=5)))


@pytest.mark.smoke
@given(SOUP.map("".join))
def test_the_score_is_the_definition(text):
    score = think_format(["p"], [text])[0]
    head, _, rest = text.partition("<think>")
    reasoning, closed, answer = rest.partition("</think>")
    tags = [(text.count("<think>"), text.count("</think>"))]
    # Invisible characters and a token that ends a turn are nothing; the soup has no other special ones.
    seen = [
        re.sub("[\\s\u200b\u200c\u200d\u2060\ufeff]", "", part) for part in (reasoning, answer.removesuffix("</s>"))
    ]
    shape = not head.strip() and bool(closed) and all(seen)
    assert score == float(shape and tags == [(1, 1)])


@given(st.text(), st.text())
def test_any_reasoning_and_answer_without_tags_is_well_formed(reasoning, answer):
    reasoning, answer = f"r{reasoning}".replace("<", ""), f"a{answer}".replace("<", "")
    assert think_format(["p"], [f"<think>{reasoning}</think>{answer}"]) == [1.0]
