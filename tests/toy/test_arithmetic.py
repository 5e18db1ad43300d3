"""The toy problems: splits, traces, tokenizer and the integer comparison."""

from __future__ import annotations

import re

import pytest

from unigrpo.models import MMaDAProcessor
from unigrpo.runs.accuracy import integer_match
from unigrpo.toy import arithmetic
from unigrpo.toy.arithmetic import FIRST, NAMES, OBJECTS, SECOND, TEMPLATES, pairs, problems, split_of, trace
from unigrpo.toy.making.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def every_row():
    return [row for split in ("train", "test") for row in problems(split)]


def test_splits_partition_the_whole_space_and_ignore_operand_order():
    space = {(a, b) for a in FIRST for b in SECOND}
    train, test = set(pairs("train")), set(pairs("test"))
    assert train | test == space
    assert not train & test
    assert len(test) >= 500
    assert all(split_of(a, b) == split_of(b, a) for a, b in space)


def test_rows_stay_in_their_split_and_cover_it():
    for split in ("train", "test"):
        rows = problems(split, 7_500, seed=3)
        assert {(row["a"], row["b"]) for row in rows} == set(pairs(split))
        for row in rows:
            assert list(map(int, re.findall(r"\d+", row["prompt"]))) == [row["a"], row["b"]]
            assert row["solution"] == f"#### {row['a'] + row['b']}"


@pytest.mark.smoke
def test_every_trace_is_correct(every_row):
    for row in every_row:
        a, b = row["a"], row["b"]
        text = trace(row)
        reasoning, answer = re.fullmatch(r"<think>(\d+)</think>(\d+)", text).groups()
        assert int(answer) == a + b
        assert integer_match(text, row["solution"])
        assert [int(digit) for digit in reasoning] == [n % 10 for n in range(a + 1, a + b + 1)]


def test_the_careless_teacher_counts_rightly_and_forgets_three_carries_in_five(every_row):
    forgot = []
    for row in every_row:
        text, right = arithmetic.careless_trace(row), trace(row)
        assert text == arithmetic.careless_trace(dict(row))
        carry = (row["a"] + row["b"]) // 10 > row["a"] // 10
        assert text.partition("</think>")[0] == right.partition("</think>")[0]
        if carry:
            forgot.append(text != right)
        if text != right:
            assert carry and integer_match(text, f"#### {row['a'] // 10 * 10 + (row['a'] + row['b']) % 10}")
    assert abs(sum(forgot) / len(forgot) - 0.6) < 4 * (0.6 * 0.4 / len(forgot)) ** 0.5


def test_tokenizer_restores_every_generated_text(tokenizer, every_row):
    processor = MMaDAProcessor(tokenizer)
    rows = every_row[::5]
    texts = [trace(row) for row in rows]
    texts += [
        template.format(name=name, a=127, b=4, things=things)
        for template in TEMPLATES
        for name in NAMES
        for things in OBJECTS
    ]
    texts += [processor.chat_text(row["prompt"]) for row in rows]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert tokenizer.batch_decode(encoded) == texts
    assert max(len(processor.encode_prompt(row["prompt"])) for row in every_row) <= 32


@pytest.mark.parametrize(
    ("completion", "solution", "expected"),
    [
        ("<think>27+45</think>72", "#### 72", True),
        ("<think>7+5=12</think>72", "72", True),
        ("<think>72</think>71", "#### 72", False),
        ("72", "#### 72", True),
        ("The total is 72.", "#### 72", True),
        ("</think>1,234", "#### 1234", True),
        ("</think>1234", "#### 1,234", True),
        ("</think>12,34", "#### 1234", False),
        ("</think>27+45=72", "#### 72", True),
        ("</think>x=-72", "#### -72", True),
        ("</think>-72", "#### 72", False),
        ("</think>100-28", "#### 28", False),
        ("</think>100-28 = 72", "#### 72", True),
        ("</think>71 = 72", "#### 72", False),
        ("</think>\\boxed{72 \\text{ cm}}", "#### 72", True),
        ("</think>\\boxed{72^2}", "#### 72", False),
        ("</think>\\boxed{\\frac{1}{2}}", "0.5", True),
        ("</think>\\boxed{2}", "\\frac{1}{2}", False),
        ("</think>072", "#### 72", True),
        ("</think>-0", "#### 0", True),
        ("</think>72.0", "#### 72", False),
        ("</think>0.72", "#### 72", False),
        ("</think>7 2", "#### 72", False),
        ("</think>", "#### 72", False),
        ("", "#### 72", False),
        ("<think>72", "#### 72", False),
        ("<think>72</think>", "#### 72", False),
        ("</think>72</think>", "#### 72", False),
        ("</think>71</think>72", "#### 72", True),
        ("</think>72 or 73", "#### 72", False),
        ("</think>" + "9" * 10_000, "#### 72", False),
        ("</think>٧٢", "#### 72", True),
        ("72", "no number", False),
    ],
)
def test_integer_match(completion, solution, expected):
    assert integer_match(completion, solution) is expected
