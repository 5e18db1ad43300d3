"""``math_correctness``: hostile answers and their cost. ``answers.json`` has values, ``test_math_process.py`` the worker's life."""

from __future__ import annotations

import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unigrpo.rewards import math as reward_module
from unigrpo.rewards import math_correctness
from unigrpo.rewards._math_process import WORKER, Verdict

from ..support.reward_rows import RED


@pytest.fixture
def no_worker(monkeypatch):
    monkeypatch.setattr(WORKER, "compare", lambda *_: pytest.fail("plain numbers need no worker"))


@pytest.fixture
def answering(monkeypatch):
    """The worker is replaced by one that gives this verdict; the calls it gets are listed."""
    calls = []

    def install(verdict):
        monkeypatch.setattr(WORKER, "compare", lambda *arguments: calls.append(arguments) or verdict)
        return calls

    return install


def score(completion, solution, **kwargs):
    return math_correctness(prompts=["p"], completions=[completion], solution=[solution], **kwargs)[0]


def metrics_of(completions, solutions, **kwargs):
    logged = {}
    scores = math_correctness(
        ["p"] * len(completions), completions, solutions, log_metric=logged.__setitem__, **kwargs
    )
    return scores, logged["math_correctness/timeouts"], logged["math_correctness/unparsable_gold"]


@pytest.mark.smoke
def test_what_is_not_text_has_no_score(no_worker):
    chat = [{"role": "assistant", "content": "\\boxed{5}"}]
    columns = {"completion_ids": None, "task": ["mmu"] * 4}
    golds = ["#### 5", "#### 5", None, float("nan")]
    assert math_correctness(["p"] * 4, [chat, RED, RED, "5"], golds, **columns) == [1.0, None, None, None]
    assert metrics_of(["5"], [5]) == ([1.0], 0, 0)
    assert metrics_of([], []) == ([], 0, 0)


DIGITS = "7" * 1_000_000
HOSTILE = {
    "power tower in prose": "10**10**10",
    "power tower": "\\boxed{10^{10^{10}}}",
    "factorials": "\\boxed{((99999!)!)!}",
    "sum without closed form": "\\boxed{\\sum_{i=1}^{10^{9}} \\sin(i^{i})}",
    "long product": "\\boxed{\\prod_{i=1}^{10^{9}} i}",
    "integral": "\\boxed{\\int_0^1 \\sin(x^x) e^{\\cos(x^{x^x})} dx}",
    "big expansion": "\\boxed{(a+b+c+d+e+f)^{200} - (a+b+c+d+e+g)^{200}}",
    "megabyte of braces": "{" * 1_000_000,
    "nested boxes": "\\boxed{" * 1000 + "5" + "}" * 1000,
    "open boxes": "\\boxed{" * 100_000,
    "nested fractions": "\\boxed{" + "\\frac{1}{" * 80 + "2" + "}" * 80 + "}",
    "nested parentheses": "\\boxed{" + "(" * 490 + "x" + ")" * 490 + "}",
    "null bytes": "\\boxed{\x00x\x00}",
    "lone surrogates": "\\boxed{\ud800x\udfff}",
    "a million digits": DIGITS,
    "a million digits in a box": f"\\boxed{{{DIGITS}}}",
    "exponent": "\\boxed{1e999999999}",
    "code": "\\boxed{__import__('os').kill(0, 9)}",
    "newlines for the pipe": '\\boxed{x}\n{"equal": true}\n',
}


@pytest.mark.parametrize("completion", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_answer_gets_a_score_in_time_and_the_next_one_its_own(completion):
    assert score("\\boxed{x+x}", "$2x$") == 1.0
    started = time.perf_counter()
    hostile = score(completion, "#### 31", timeout=0.2)
    elapsed = time.perf_counter() - started
    assert hostile == 0.0
    assert elapsed < 60, f"{elapsed:.2f} s: hours without a bound"
    assert score("\\boxed{x+x+x}", "$3x$") == 1.0


def test_a_timeout_is_counted_and_only_paid_once_for_equal_pairs():
    tower = "\\boxed{9^{9^{9^9}}}"
    scores, timeouts, unparsable = metrics_of([tower, tower, "5", f"again {tower}"], [5, 5, 5, 5], timeout=0.5)
    assert (scores, timeouts, unparsable) == ([0.0, 0.0, 1.0, 0.0], 1, 0)


def test_the_bound_is_the_callers(answering):
    calls = answering(Verdict.DIFFERENT)
    score("\\boxed{\\ln e^5}", 5, timeout=0.25)
    score("\\boxed{\\ln e^5}", 5)
    assert calls == [("5", "\\ln e^5", 0.25), ("5", "\\ln e^5", 5.0)]


def test_a_distinct_pair_is_compared_once_a_call(answering):
    calls = answering(Verdict.EQUAL)
    assert math_correctness(["p"] * 3, ["\\boxed{x}", "\\boxed{x}", "\\boxed{y}"], ["2z"] * 3) == [1.0] * 3
    assert [call[:2] for call in calls] == [("2z", "x"), ("2z", "y")]


@pytest.mark.parametrize(("verdict", "timeouts"), [(Verdict.GOLD_UNREADABLE, 0), (Verdict.GOLD_EXHAUSTED, 1)])
def test_a_bad_gold_is_none_and_counted_a_row_and_tried_once(answering, verdict, timeouts):
    calls = answering(verdict)
    result = metrics_of(["\\boxed{x}", "\\boxed{y}", RED, "5"], ["$2z$", "$2z$", "$2z$", None])
    assert result == ([None] * 4, timeouts, 3)
    assert len(calls) == 1


def test_a_missing_column_is_an_error_unless_no_row_is_text():
    with pytest.raises(ValueError, match="solution"):
        math_correctness(["p"], ["5"])
    with pytest.raises(ValueError):
        math_correctness(["p"] * 2, ["5", "6"], [5])
    assert math_correctness(["p"], [RED]) == [None]


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
def test_a_timeout_that_bounds_nothing_is_an_error(timeout):
    with pytest.raises(ValueError, match="timeout"):
        score("5", 5, timeout=timeout)


def test_threads_get_their_own_answers():
    failures = []

    def work(seed):
        for n in random.Random(seed).sample(range(2, 1000), 10):
            if [score(f"\\boxed{{{n}y+y}}", f"${n + 1}y$"), score(f"\\boxed{{{n}y}}", f"${n + 1}y$")] != [1.0, 0.0]:
                failures.append(n)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


PIECES = st.sampled_from(["\\boxed{", "}", "<answer>", "</answer>", "</think>", "$", "-", "12", ",345", "/", ".", "x"])


@given(st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=30).map("".join), st.integers(-99, 99))
def test_any_text_gets_0_or_1(text, gold):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_module.WORKER, "compare", lambda *_: Verdict.DIFFERENT)
        assert score(text, gold) in (0.0, 1.0)
        assert score(f"{text} \\boxed{{{gold}}}", gold) == 1.0
        assert score(f"{text} \\boxed{{{gold + 1}}}", gold) == 0.0
