"""Rewards that raise, hang or return nonsense: contained, counted, named."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from unigrpo.errors import RewardError
from unigrpo.rewards import math_correctness
from unigrpo.rewards._math_process import WORKER
from unigrpo.rollout.reward_faults import fault_metrics
from unigrpo.rollout.rewards import RewardSet
from unigrpo.runs.build import ForTask

from ..support import ROOT
from ..support.answers import answers, good, good_later, raises, raises_later, returning, sample


def cancels(**_):
    async def run():
        raise asyncio.CancelledError

    return run()


def exhausts(**_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def generates(**_):
    yield 1.0
    raise RuntimeError("half way")


def endless(**_):
    while True:
        yield 1.0


def hangs(**_):
    time.sleep(300)


def catches_exceptions(**_):
    """The loop that many rewards have."""
    for _ in range(60):
        with contextlib.suppress(Exception):
            time.sleep(1)


def swallows(**_):
    with contextlib.suppress(BaseException):
        time.sleep(60)
    return [0.0] * 3


def yields_slowly(**_):
    for _ in range(3):
        time.sleep(60)
        yield 1.0


async def hangs_later(**_):
    await asyncio.sleep(60)


async def swallows_later(**_):
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


async def blocks(**_):
    time.sleep(30)


async def waits_for_thread(**_):
    return await asyncio.to_thread(time.sleep, 300)


WHOLE = [
    (raises, r"'raises' raised KeyError: 'solution' \(answers.py:\d+\)"),
    (raises_later, r"'raises_later' raised ConnectionError: the judge is down"),
    (cancels, r"'cancels' cancelled itself"),
    (exhausts, r"'exhausts' raised OutOfMemoryError: CUDA out of memory"),
    (generates, r"'generates' raised RuntimeError: half way"),
    (endless, r"'endless' returned 4 scores for 3 completions"),
    (returning([1.0]), r"'odd' returned 1 scores for 3 completions"),
    (returning([]), r"'odd' returned 0 scores for 3 completions"),
    (returning(None), r"'odd' must return a list of 3 scores, got NoneType"),
    (returning(torch.tensor(1.0)), r"'odd' must return a list of 3 scores, got Tensor"),
    (returning("123"), r"'odd' must return a list of 3 scores, got str"),
    (returning({0: 1, 1: 1, 2: 1}), r"'odd' must return a list of 3 scores, got dict"),
]
"""The call failed as a whole."""


@pytest.mark.parametrize(("reward", "message"), WHOLE)
def test_a_failed_call_ends_the_run_or_costs_this_reward_alone(reward, message):
    sentence = message + r".*3 answers, the first to the prompt 'question 0'.*set reward_error='none'"
    with pytest.raises(RewardError, match=sentence):
        RewardSet(functions=[good, reward]).score(answers())
    rewards = RewardSet(functions=[good, reward, good_later], on_error="none")
    with pytest.warns(UserWarning, match=message + r".*'question 0'.*goes on.*rewards/\w+/errors"):
        found = rewards.score(answers())
    assert found.values[:, [0, 2]].tolist() == [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
    assert bool(found.values[:, 1].isnan().all()) and found.lost.tolist() == [False, True, False]
    assert found.faults.tolist() == [[0, 0], [3, 0], [0, 0]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "returned nan, which is no finite number"),
        (math.inf, "returned inf, which is no finite number"),
        (1e300, r"returned 1e\+300, which is no finite number"),
        (np.float32("nan"), "returned nan"),
        ("good", "returned something that is not a number or None: 'good'"),
        ("1.0", "returned something that is not a number or None: '1.0'"),
        ([1.0], r"returned something that is not a number or None: \[1.0\]"),
        (10**400, "returned something that is not a number or None: 1000000"),
        (1j, "returned something that is not a number or None: 1j"),
    ],
)
def test_a_wrong_score_ends_the_run_or_costs_its_row(value, message):
    reward = returning([0.5, value, None])
    sentence = rf"'odd' {message}.*for the answer to the prompt 'question 1'.*reward_error"
    with pytest.raises(RewardError, match=sentence):
        RewardSet(functions=[reward, good]).score(answers())
    with pytest.warns(UserWarning, match=rf"'odd' {message}"):
        found = RewardSet(functions=[reward, good], on_error="none").score(answers())
    first, second, third = found.values
    assert first.tolist() == [0.5, 1.0]
    assert bool(second.isnan().all()), "with its other reward alone it would be compared with answers that have both"
    assert math.isnan(third[0]) and third[1] == 3.0, "None is no fault"
    assert found.faults.tolist() == [[1, 0], [0, 0]] and not found.lost.any()


HANGS = [hangs, catches_exceptions, swallows, yields_slowly, hangs_later, swallows_later, waits_for_thread]


@pytest.mark.parametrize("reward", HANGS)
def test_a_hang_is_bounded(reward):
    name, start = reward.__name__, time.monotonic()
    with pytest.raises(RewardError, match=rf"'{name}' did not return within reward_timeout=0.1.*raise reward_timeout"):
        RewardSet(functions=[reward], timeout=0.1).score(answers())
    # The others must return in that time too, on a busy machine.
    rewards = RewardSet(functions=[good_later, reward, good], timeout=0.4, on_error="none")
    with pytest.warns(UserWarning, match=rf"'{name}' did not return within reward_timeout=0.4"):
        found = rewards.score(answers())
    assert time.monotonic() - start < 30, "half of what each would take"
    assert found.values[:, [0, 2]].tolist() == [[4.0, 1.0], [5.0, 2.0], [6.0, 3.0]]
    assert bool(found.values[:, 1].isnan().all()) and found.faults.tolist() == [[0, 0], [3, 1], [0, 0]]
    assert fault_metrics(rewards.names, found.faults, bounded=True)[f"rewards/{name}/timeouts"] == 1.0


def test_an_async_reward_that_blocks_the_loop_is_bounded(monkeypatch):
    monkeypatch.setattr("unigrpo.rollout.bounded_call.GRACE", 0.1)
    start = time.monotonic()
    with pytest.warns(UserWarning, match="'blocks' did not return"):
        found = RewardSet(functions=[blocks, good], on_error="none", timeout=0.4).score(answers())
    assert time.monotonic() - start < 20 and found.values[:, 1].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.smoke
def test_a_hang_is_left_behind_and_what_it_logs_later_is_dropped():
    free, ended = threading.Event(), threading.Event()

    def waits(log_metric, **_):
        free.wait(60)
        log_metric("late", 1.0)
        ended.set()

    rewards = RewardSet(functions=[waits, good], on_error="none", timeout=0.4)
    with pytest.warns(UserWarning, match="'waits' did not return"):
        found = rewards.score(answers())
    assert found.values[:, 1].tolist() == [1.0, 2.0, 3.0] and bool(found.values[:, 0].isnan().all())
    free.set()
    assert ended.wait(30), "it goes on by itself"
    assert found.metrics == {}


def test_a_bounded_call_has_the_context_and_the_gradients_of_the_run():
    seen, mark = [], contextvars.ContextVar("mark")
    mark.set("run's")

    def look():
        seen.append((mark.get(), torch.is_grad_enabled(), threading.current_thread() is threading.main_thread()))
        return [0.0] * 3

    async def later(**_):
        return await asyncio.to_thread(look)

    with torch.no_grad():
        RewardSet(functions=[lambda **_: look(), later], timeout=30.0).score(answers())
    assert seen == [("run's", False, False)] * 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("timeout", [None, 60.0])
def test_who_asks_to_stop_is_heard(stop, timeout):
    def sync(**_):
        raise stop

    async def later(**_):
        raise stop

    for reward in (sync, later):
        with pytest.raises(stop):
            RewardSet(functions=[reward], on_error="none", timeout=timeout).score(answers())


def test_ctrl_c_waits_neither_for_an_async_reward_nor_for_a_bounded_one():
    cancelled, free = threading.Event(), threading.Event()

    async def waits_later(**_):
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    def waits(**_):
        os.kill(os.getpid(), signal.SIGINT)
        free.wait(60)

    for reward, timeout in ((waits_later, None), (waits, 60.0)):
        with pytest.raises(KeyboardInterrupt):
            RewardSet(functions=[reward], timeout=timeout).score(answers())
    free.set()
    assert cancelled.wait(30)


@pytest.mark.processes
def test_a_process_ends_although_calls_were_left_behind():
    code = """
from tests.rollout.test_misbehaving_rewards import *
for reward in (hangs, waits_for_thread, swallows_later, blocks):
    print(RewardSet(functions=[reward], on_error="none", timeout=0.1).score(answers()).values.isnan().all())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and done.stdout.count("tensor(True)") == 4, done.stderr


def test_coroutines_that_nobody_waits_for_are_closed(recwarn):
    with pytest.raises(RewardError, match="'raises'"):
        RewardSet(functions=[good_later, raises]).score(answers())
    gc.collect()
    assert [own for own in recwarn if "never awaited" in str(own.message)] == []


def test_each_kind_of_fault_is_warned_of_once():
    faults = iter([raises, raises, returning([1.0]), returning([math.nan, 1, 1]), returning([math.inf, 1, 1]), raises])

    def moody(**columns):
        return next(faults)(**columns)

    rewards = RewardSet(functions=[moody], on_error="none")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        counts = [rewards.score(answers()).faults.tolist() for _ in range(6)]
    assert [str(own.message).split(" ")[2] for own in caught] == ["raised", "returned", "returned"]
    assert counts == [[[count, 0]] for count in (3, 3, 3, 1, 1, 3)]


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_the_error_of_a_reward_for_one_task_names_its_own_line_alone(timeout):
    """The lines of the library around it are left out, in whatever room they stand."""

    def own(completions, **columns):
        raise ZeroDivisionError("no")

    with pytest.raises(RewardError, match=r"raised ZeroDivisionError: no \(test_misbehaving_rewards\.py:\d+\), "):
        RewardSet(functions=[ForTask(own, "text")], timeout=timeout).score(answers())


def test_the_math_worker_serves_on_after_a_call_was_left_behind():
    right, hard = (
        [sample({"prompt": "p", "solution": "$2x$"}, rf"\boxed{{{own}}}")] for own in ("x+x", "9^{9^{9^9}}")
    )
    ended = threading.Event()

    def patient(**columns):
        try:
            return math_correctness(**columns, timeout=2.0)
        finally:
            ended.set()

    rewards = RewardSet(functions=[patient], on_error="none")
    rewards.score(right)
    ended.clear()
    pid, rewards.timeout = WORKER.pid, 0.3
    with pytest.warns(UserWarning, match="'patient' did not return"):
        rewards.score(hard)
    rewards.timeout = 60.0
    assert rewards.score(right).values.tolist() == [[1.0]], "after it, and of it no reply is left"
    assert ended.is_set() and not Path(f"/proc/{pid}").exists(), "killed at its own bound, and reaped"


def test_a_score_that_its_weight_makes_too_large_is_a_fault():
    rewards = RewardSet(functions=[returning([3e38, 1.0])], weights=[2.0])
    with pytest.raises(
        RewardError, match=r"'odd' returned 3e\+38, which is too large with a weight of 2.*'question 0'"
    ):
        rewards.score(answers(2))
    rewards.on_error = "none"
    scores = rewards.score(answers(2)).values
    assert scores[0].isnan().all() and scores[1].tolist() == [1.0]
