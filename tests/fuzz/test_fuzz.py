"""Hostile input by chance. A few hundred cases in the ordinary run; ``UNIGRPO_FUZZ=20`` makes it twenty times as many."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import string
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unigrpo.rewards._answers import gold_answer, predicted_answer
from unigrpo.rewards._numbers import read_number
from unigrpo.rewards._said import said_answer
from unigrpo.rewards.math import math_correctness

from . import seeds, targets


MORE = int(os.environ.get("UNIGRPO_FUZZ", "1"))
CASES = {"recipe": 150, "answers": 400, "image": 500, "checkpoint": 60}
SLOWEST = 10.0


@pytest.fixture(autouse=True, scope="module")
def hushed():
    """As in the harness, and put back."""
    import logging

    from transformers.utils import logging as own

    limit, disabled = sys.getrecursionlimit(), logging.root.manager.disable
    targets.quiet()
    yield
    sys.setrecursionlimit(limit)
    logging.disable(disabled)
    own.enable_progress_bar()


@pytest.mark.parametrize("target", targets.TARGETS)
def test_real_input_with_a_few_changes(target):
    found = seeds.seeds(target)
    check = targets.TARGETS[target]
    for seed in found:
        check(seed)
    slowest = 0.0
    for number in range(CASES[target] * MORE):
        began = time.perf_counter()
        check(seeds.mutated(found[number % len(found)], number))
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < SLOWEST


@pytest.mark.parametrize("target", targets.TARGETS)
def test_any_bytes_at_all(target):
    @settings(
        max_examples=30 * MORE, deadline=SLOWEST * 1000, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.binary(max_size=300))
    def check(data):
        targets.TARGETS[target](data)

    check()


_text = st.text(max_size=60) | st.text(alphabet="0123456789.,-+eE/\\{}[]()$ %²−abB<>#=", max_size=60)
_long = st.builds(
    lambda piece, count, tail: piece * count + tail,
    st.sampled_from([
        "\\boxed{", "}", "{", "1,000", "1,", ".", "-", "\\frac{1}{2}", "\\text{", "a ", "<answer>", "</answer>", "</think>", "\\",
        "1e9", "((", "9", "²", "/", "\ud800", "\u202e", "#### ", "$", "**", " 5 m", "(A)", "answer is A", "½", "\\boxed {", "a/",
    ]),
    st.integers(1, 30_000),
    st.sampled_from(["", "}", "x", "!", "5", ")"]),
)  # fmt: skip


@settings(max_examples=50 * MORE, deadline=SLOWEST * 1000, derandomize=True, database=None)
@given(_text | _long, _text | _long)
def test_answers_of_any_text(first, second):
    targets.answers((first + "\x00" + second).encode("utf-8", errors="surrogatepass"))
    for read in (predicted_answer, gold_answer):
        found = read(first)
        assert found is None or 0 < len(found) <= 1_000
    for read in (said_answer, read_number):
        read(first)


@settings(max_examples=100 * MORE, derandomize=True, database=None)
@given(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.integers(2**4_000, 2**5_000),
        st.binary(),
        st.lists(_text),
    )
)
def test_solutions_of_any_kind(solution):
    answer = gold_answer(solution)
    assert answer is None or 0 < len(answer) <= 1_000


HOSTILE_LATEX = [
    "\\boxed{9^{9^{9^{9}}}}", "\\boxed{\\sum_{n=1}^{10^{9}} n!}", "\\boxed{" + "{" * 900 + "}" * 900 + "}", "\\boxed{(((((((x+1)^9)^9)^9)^9)^9)}",
    "\\boxed{\\int_0^\\infty e^{x^{x^x}}}", "\\boxed{__import__('os').system('true')}", "\\boxed{\ud800}", "\\boxed{" + "x+" * 490 + "}",
]  # fmt: skip


def test_mathematics_that_never_ends_costs_its_time_and_no_more(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Every one that runs out of time costs a new worker: few in the ordinary run.
    for text in HOSTILE_LATEX[: 3 * MORE]:
        began = time.perf_counter()
        scores = math_correctness(["p"] * 2, [text, "\\boxed{x^2}"], ["x^2", "x^2"], timeout=0.5)
        assert all(score in (0.0, 1.0, None) for score in scores)
        assert time.perf_counter() - began < SLOWEST
    assert not list(tmp_path.iterdir())


def test_values_of_any_kind_are_pictures_or_refused():
    from unigrpo.data.pictures import load_image

    rng = random.Random(0)
    values = ["", "\0", "x" * 5_000, "/", "/dev/zero", "/dev/stdin", "/proc/self/mem", "http://localhost:1/a.png", "file:///etc/passwd"]  # fmt: skip
    values += [None, 1, 1.5, [], [1], (1, 2), {}, {"path": "/dev/zero"}, {"bytes": 7}, {"bytes": {"bytes": b""}}, {"path": ["a"]}, object()]  # fmt: skip
    values += ["".join(rng.choices(string.printable, k=20)) for _ in range(50)]
    for value in values:
        with pytest.raises(ValueError, match=r"rows\[0\]"):
            load_image(value, "rows[0]")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", targets.TARGETS)
def test_a_search_guided_by_coverage(target, capsys):
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install 'unigrpo[fuzz]' (Python 3.11 to 3.13)")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", target, "--seconds", "60", "--seed", "1"],
        cwd=targets.ROOT, capture_output=True, text=True, errors="replace", timeout=250,
    )  # fmt: skip
    line = re.search(rf"^fuzz {target}: (\d+) cases in \d+ s, 0 crashes, slowest .* s$", done.stdout, re.MULTILINE)
    assert done.returncode == 0 and line, (done.stdout + done.stderr)[-4_000:]
    assert int(line[1]) > 100
    with capsys.disabled():
        print(f"\n{line[0]}")
