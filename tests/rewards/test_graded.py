"""One table of answers by kind: what each is worth, as a recipe would have it graded."""

from __future__ import annotations

import json
import re
from itertools import cycle
from pathlib import Path

import pytest

from unigrpo.rewards import get_reward


CASES = json.loads(Path(__file__).with_name("answers.json").read_text())
"""``kind`` names the reward, ``input`` the completion and the columns. ``firm``: any grader should agree; the others are a
matter of a rule, which ``rewards/README.md`` has."""

KINDS = sorted({(case["kind"], case["group"]) for case in CASES})


def graded(cases):
    """The scores of cases of one reward, in one call."""
    columns = [name for name in cases[0]["input"] if name != "completion"]
    texts = [case["input"]["completion"] for case in cases]
    by_name = {name: [case["input"][name] for case in cases] for name in columns}
    return get_reward(cases[0]["kind"])(prompts=[""] * len(texts), completions=texts, **by_name)


@pytest.mark.smoke
@pytest.mark.parametrize(("kind", "group"), KINDS)
def test_every_answer_gets_what_it_is_worth(kind, group):
    cases = [case for case in CASES if (case["kind"], case["group"]) == (kind, group)]
    wrong = [
        (case["input"], f"expected {case['expected']}, got {score}")
        for case, score in zip(cases, graded(cases), strict=True)
        if score != case["expected"]
    ]
    assert not wrong


def test_the_table_is_large_and_says_each_thing_once():
    assert len(CASES) >= 600
    assert len({json.dumps([case["kind"], case["input"]], sort_keys=True) for case in CASES}) == len(CASES)
    assert {case["kind"] for case in CASES} == {"math_correctness", "answer_correctness", "countdown", "think_format"}


@pytest.mark.parametrize("kind", ["math_correctness", "answer_correctness"])
def test_a_score_is_the_same_in_any_batch(kind):
    cases = [case for case in CASES if case["kind"] == kind]
    # Every third: forwards, backwards, and by itself beside copies.
    some = cases[::3]
    forwards = graded(some)
    assert graded(some[::-1]) == forwards[::-1]
    for place in range(0, len(some), 9):
        assert graded([cases[0], some[place], cases[-1], some[place]])[1::2] == [forwards[place]] * 2


SURROUNDINGS = [
    "<think>Try \\boxed{99}, or 98.</think>It is \\fbox{%s}, which took 3 steps.",
    "It took 3 steps.\n<answer> $%s$ </answer>",
    "Therefore the answer is \\(%s\\). That took 3 steps.",
    "So after 3 steps it is $%s$",
]


def _boxed(case):
    """What a case has in its only box, if that is all its answer; words between dollars are no mathematics."""
    text = case["input"]["completion"]
    before, boxed, content = text.rpartition("\\boxed{")
    if not (boxed and content.endswith("}") and content[:-1].strip()) or "{" in before or text.count("oxed") > 1:
        return None
    bare = re.sub(r"\\[A-Za-z]+(\s*\{[^{}]*\})?", "", content)
    return None if "$" in content or (re.search("[A-Za-z]{2}", bare) and re.search("[0-9 ]", bare)) else content[:-1]


def test_a_boxed_answer_is_worth_the_same_in_other_surroundings():
    """Each answer in one of them, in turn."""
    boxed = [own for own in CASES if own["kind"] == "math_correctness" and own["firm"] and _boxed(own)]
    again = [
        {**case, "input": {**case["input"], "completion": surroundings.replace("%s", _boxed(case))}}
        for case, surroundings in zip(boxed, cycle(SURROUNDINGS), strict=False)
    ]
    assert len(again) > 250
    wrong = [
        (case["input"], score) for case, score in zip(again, graded(again), strict=True) if score != case["expected"]
    ]
    assert not wrong
