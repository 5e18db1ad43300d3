"""Rewards that raise, hang, return nonsense or change what they are given: contained, counted, named."""

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
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.errors import RewardError
from unigrpo.rewards import math_correctness
from unigrpo.rewards._math_process import WORKER
from unigrpo.rollout.reward_faults import fault_metrics
from unigrpo.rollout.rewards import RewardSet
from unigrpo.runs.build import ForTask
from unigrpo.training.evaluation import comparable, held_out_answers, reward_summary
from unigrpo.training.metrics import Metrics
from unigrpo.training.setup import warn_of_waits
from unigrpo.types import Sample

from ..support import ROOT
from ..support.processes import played
from ..support.runs import logs_of
from ..support.tiny import TRAINING, low_ids, prompts, tiny_model, tiny_processor
from ..support.tolerances import FP32


def answers(count: int = 3, **columns) -> list[Sample]:
    rows = [{"prompt": f"question {i}", **{key: own[i] for key, own in columns.items()}} for i in range(count)]
    return [Sample(row=row, completion=f"answer {i}", completion_ids=[i], task="text") for i, row in enumerate(rows)]


def good(completions, **_):
    return [1.0, 2.0, 3.0][: len(completions)]


async def good_later(completions, **_):
    await asyncio.sleep(0.01)
    return [4.0, 5.0, 6.0]


def raises(**_):
    raise KeyError("solution")


async def raises_later(**_):
    await asyncio.sleep(0)
    raise ConnectionError("the judge is down")


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


def returning(value):
    def odd(**_):
        return value

    return odd


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


WHOLE = {
    "raises": (raises, r"'raises' raised KeyError: 'solution' \(test_misbehaving_rewards.py:\d+\)"),
    "async raises": (raises_later, r"'raises_later' raised ConnectionError: the judge is down"),
    "cancelled": (cancels, r"'cancels' cancelled itself"),
    "memory": (exhausts, r"'exhausts' raised OutOfMemoryError: CUDA out of memory"),
    "generator raises": (generates, r"'generates' raised RuntimeError: half way"),
    "endless": (endless, r"'endless' returned 4 scores for 3 completions"),
    "short": (returning([1.0]), r"'odd' returned 1 scores for 3 completions"),
    "empty": (returning([]), r"'odd' returned 0 scores for 3 completions"),
    "none": (returning(None), r"'odd' must return a list of 3 scores, got NoneType"),
    "number": (returning(torch.tensor(1.0)), r"'odd' must return a list of 3 scores, got Tensor"),
    "text": (returning("123"), r"'odd' must return a list of 3 scores, got str"),
    "dict": (returning({0: 1, 1: 1, 2: 1}), r"'odd' must return a list of 3 scores, got dict"),
}
"""The call failed as a whole."""


@pytest.mark.parametrize(("reward", "message"), WHOLE.values(), ids=WHOLE.keys())
def test_a_failed_call_ends_the_run_or_costs_this_reward_alone(reward, message):
    with pytest.raises(
        RewardError, match=message + r".*3 answers, the first to the prompt 'question 0'.*set reward_error='none'"
    ):
        RewardSet(functions=[good, reward]).score(answers())
    rewards = RewardSet(functions=[good, reward, good_later], on_error="none")
    with pytest.warns(UserWarning, match=message + r".*'question 0'.*goes on.*rewards/\w+/errors"):
        found = rewards.score(answers())
    scores = found.values
    assert scores[:, [0, 2]].tolist() == [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
    assert bool(scores[:, 1].isnan().all())
    assert found.lost.tolist() == [False, True, False]
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
    with pytest.raises(
        RewardError, match=rf"'odd' {message}.*for the answer to the prompt 'question 1'.*reward_error"
    ):
        RewardSet(functions=[reward, good]).score(answers())
    rewards = RewardSet(functions=[reward, good], on_error="none")
    with pytest.warns(UserWarning, match=rf"'odd' {message}"):
        found = rewards.score(answers())
    scores = found.values
    assert scores[0].tolist() == [0.5, 1.0]
    assert bool(scores[1].isnan().all()), (
        "with its other reward alone it would be compared with answers that have both"
    )
    assert math.isnan(scores[2, 0]) and scores[2, 1] == 3.0, "None is no fault"
    assert found.faults.tolist() == [[1, 0], [0, 0]]
    assert not found.lost.any()


HANGS = {
    "sync": hangs,
    "except Exception": catches_exceptions,
    "except": swallows,
    "generator": yields_slowly,
    "async": hangs_later,
    "cancellation swallowed": swallows_later,
    "in a thread of its own": waits_for_thread,
}


@pytest.mark.parametrize("reward", HANGS.values(), ids=HANGS.keys())
def test_a_hang_is_bounded(reward):
    name = reward.__name__
    start = time.monotonic()
    with pytest.raises(RewardError, match=rf"'{name}' did not return within reward_timeout=0.1.*raise reward_timeout"):
        RewardSet(functions=[reward], timeout=0.1).score(answers())
    # The others must return in that time too, on a busy machine.
    rewards = RewardSet(functions=[good_later, reward, good], timeout=0.8, on_error="none")
    with pytest.warns(UserWarning, match=rf"'{name}' did not return within reward_timeout=0.8"):
        found = rewards.score(answers())
    scores = found.values
    assert time.monotonic() - start < 30, "half of what each would take"
    assert scores[:, [0, 2]].tolist() == [[4.0, 1.0], [5.0, 2.0], [6.0, 3.0]]
    assert bool(scores[:, 1].isnan().all())
    assert found.faults.tolist() == [[0, 0], [3, 1], [0, 0]]
    assert fault_metrics(rewards.names, found.faults, bounded=True)[f"rewards/{name}/timeouts"] == 1.0


def test_an_async_reward_that_blocks_the_loop_is_bounded(monkeypatch):
    monkeypatch.setattr("unigrpo.rollout.bounded_call.GRACE", 0.1)
    rewards = RewardSet(functions=[blocks, good], on_error="none", timeout=0.8)
    start = time.monotonic()
    with pytest.warns(UserWarning, match="'blocks' did not return"):
        found = rewards.score(answers())
    scores = found.values
    assert time.monotonic() - start < 20
    assert scores[:, 1].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.smoke
def test_a_hang_is_left_behind_and_what_it_logs_later_is_dropped():
    free, ended = threading.Event(), threading.Event()

    def waits(log_metric, **_):
        free.wait(60)
        log_metric("late", 1.0)
        ended.set()

    rewards = RewardSet(functions=[waits, good], on_error="none", timeout=0.8)
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reward_error": "warn"}, r"reward_error='warn' is not valid: .*\['raise', 'none'\]"),
        ({"reward_error": None}, r"reward_error=None is not valid"),
        ({"reward_timeout": 0}, r"reward_timeout=0.0 must be a positive number of seconds, or None for no bound"),
        ({"reward_timeout": -1.0}, r"reward_timeout=-1.0 must be a positive"),
        ({"reward_timeout": math.nan}, r"reward_timeout=nan must be finite"),
        ({"reward_timeout": math.inf}, r"reward_timeout=inf must be finite"),
        ({"reward_timeout": "soon"}, r"reward_timeout='soon' must be a number, or none"),
        ({"reward_timeout": True}, r"reward_timeout=True must be a number, or none"),
    ],
)
def test_arguments_that_bound_nothing(values, message):
    with pytest.raises(ValueError, match=message):
        UniGRPOConfig("unused", use_cpu=True, report_to="none", **values)


def test_arguments_reach_the_rewards(make_trainer):
    usual, own = make_trainer(), make_trainer(reward_error="none", reward_timeout=None)
    assert (usual.rewards.on_error, usual.rewards.timeout) == ("raise", 600.0)
    assert usual.rewards.timeout < usual.args.ddp_timeout
    assert (own.rewards.on_error, own.rewards.timeout) == ("none", None)


# ---- inputs ----


def vandal(prompts, completions, completion_ids, task, images, meta, trainer_state, log_extra, **_):
    """Changes everything it can reach."""
    log_extra("seen", [own["tags"][0] for own in meta])
    for place in range(len(prompts)):
        prompts[place][0]["content"] = "gone"
        prompts[place].append("more")
        if isinstance(completions[place], Image.Image):
            completions[place].paste((0, 0, 0), (0, 0, 4, 4))
        else:
            completions[place][0]["content"] = "gone"
        completion_ids[place].append(99)
        images[place][0].paste((0, 0, 0), (0, 0, 4, 4))
        meta[place]["tags"].clear()
        meta[place]["array"][:] = 0
        meta[place]["tensor"].zero_()
    for column in (prompts, completions, completion_ids, task, images, meta):
        column.clear()
    trainer_state.global_step = 0
    trainer_state.log_history.clear()
    return [1.0, 1.0]


def test_each_reward_sees_the_original():
    photo = Image.new("RGB", (4, 4), (9, 8, 7))
    drawn = Image.new("RGB", (4, 4), (1, 2, 3))

    def answer(number: int, completion) -> Sample:
        chat = [{"role": "user", "content": f"question {number}"}]
        meta = {"tags": [f"tag {number}"], "array": np.ones(2), "tensor": torch.ones(2)}
        row = {"prompt": chat, "meta": meta}
        return Sample(row=row, completion=completion, completion_ids=[5, 6], task="mmu", images=[photo])

    rows = [answer(0, "yes"), answer(1, drawn)]
    state = SimpleNamespace(global_step=7, log_history=[{"loss": 1.0}])
    seen = []

    def looks(**arguments):
        arguments.pop("log_extra"), arguments.pop("log_metric")
        assert [pictures[0].getpixel((0, 0)) for pictures in arguments.pop("images")] == [(9, 8, 7)] * 2
        completions = arguments["completions"]
        completions[1] = completions[1].getpixel((0, 0))
        for own in arguments["meta"]:
            own["array"], own["tensor"] = own["array"].tolist(), own["tensor"].tolist()
        seen.append(arguments)
        return [0.0, 0.0]

    rewards = RewardSet(functions=[vandal, looks, vandal, looks])
    for _ in range(2):
        found = rewards.score(rows, state)
    assert len(seen) == 4 and all(own == seen[0] for own in seen[1:])
    assert seen[0] == {
        "prompts": [[{"role": "user", "content": f"question {n}"}] for n in range(2)],
        "completions": [[{"role": "assistant", "content": "yes"}], (1, 2, 3)],
        "completion_ids": [[5, 6], [5, 6]],
        "task": ["mmu", "mmu"],
        "meta": [{"tags": [f"tag {n}"], "array": [1.0, 1.0], "tensor": [1.0, 1.0]} for n in range(2)],
        "trainer_state": state,
    }
    assert (photo.getpixel((0, 0)), drawn.getpixel((0, 0))) == ((9, 8, 7), (1, 2, 3))
    assert (state.global_step, state.log_history) == (7, [{"loss": 1.0}])
    assert found.extras == {"seen": ["tag 0", "tag 1"]}


def test_a_shared_picture_is_copied_once_and_a_broken_one_handed_on(tmp_path):
    photo = Image.effect_noise((64, 64), 50.0)
    photo.save(tmp_path / "photo.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "photo.png").read_bytes()[:500])
    rows = [Sample(row={"prompt": "p"}, completion="c", completion_ids=[], task="mmu", images=[photo])] * 2
    broken = Image.open(tmp_path / "cut.png")
    rows += [Sample(row={"prompt": "p"}, completion=broken, completion_ids=[], task="t2i")]
    seen = []
    RewardSet(functions=[lambda images, completions, **_: seen.extend([images, completions]) or good(images)]).score(
        rows
    )
    (first, second, _), completions = seen
    assert first[0] is second[0] is not photo
    assert completions[2] is broken


# ---- logs ----

BAD_LOGS = {
    "short column": lambda log_extra, **_: log_extra("why", ["a"]),
    "no column": lambda log_extra, **_: log_extra("why", 1.0),
    "text for a column": lambda log_extra, **_: log_extra("why", "abc"),
    "column without a name": lambda log_extra, **_: log_extra(3, ["a", "b", "c"]),
    "text for a number": lambda log_metric, **_: log_metric("why", "many"),
    "infinite": lambda log_metric, **_: log_metric("why", math.inf),
    "None": lambda log_metric, **_: log_metric("why", None),
    "metric without a name": lambda log_metric, **_: log_metric(None, 1.0),
}


@pytest.mark.parametrize("misuse", BAD_LOGS.values(), ids=BAD_LOGS.keys())
def test_a_wrong_log_ends_the_run_or_is_left_out(misuse):
    def chatty(log_extra, log_metric, **_):
        log_extra("length", [1, 2, 3])
        log_metric("calls", 2)
        log_metric("nothing to report", math.nan)
        misuse(log_extra=log_extra, log_metric=log_metric)
        return [1.0, 2.0, 3.0]

    with pytest.raises(
        RewardError, match=r"'chatty' called log_(extra|metric)\(.*with other than a name and.*'question 0'"
    ):
        RewardSet(functions=[chatty]).score(answers())
    rewards = RewardSet(functions=[chatty], on_error="none")
    with pytest.warns(UserWarning, match=r"'chatty' called log_"):
        found = rewards.score(answers())
    assert found.values.tolist() == [[1.0], [2.0], [3.0]]
    assert (found.extras, found.metrics) == ({"length": [1, 2, 3]}, {"calls": [2.0]})
    assert found.faults.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([1, 2.5, True], [1.0, 2.5, 1.0]),
        ([1, "a", None], ["1", "a", None]),
        ([10**30, 1, 2], [1e30, 1.0, 2.0]),
        (["\ud800", "b", "c"], ["?", "b", "c"]),
        (np.arange(3), [0, 1, 2]),
        ([np.float32(0.5), 1.0, None], [0.5, 1.0, None]),
    ],
)
def test_logged_columns_have_one_kind_of_value(values, kept, tmp_path):
    from unigrpo.training.completions import save_completions

    rewards = RewardSet(functions=[lambda log_extra, **_: log_extra("why", values) or [1.0] * 3])
    found = rewards.score(answers())
    assert found.extras["why"] == kept
    save_completions({"prompt": ["a"] * 3, "completion": ["b"] * 3, **found.extras}, tmp_path, 0)


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


# ---- rewards of one task ----


def two_tasks() -> list[Sample]:
    rows = [({"prompt": "draw"}, "t2i"), ({"prompt": "add"}, "text"), ({"prompt": "carry"}, "text")]
    return [Sample(row=row, completion="c", completion_ids=[], task=task) for row, task in rows]


@pytest.mark.parametrize("reward", [raises, raises_later, returning([1.0] * 3), returning("ab")])
def test_a_reward_of_one_task_is_named_with_a_prompt_of_that_task(reward):
    rewards = RewardSet(functions=[ForTask(reward, "text"), good], on_error="none")
    with pytest.warns(UserWarning, match=rf"reward '{reward.__name__}' .*prompt 'add'"):
        found = rewards.score(two_tasks())
    scores = found.values
    assert found.faults.tolist() == [[2, 0], [0, 0]]
    assert scores[:, 1].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("values", [["a"], ["a", "b", "c"], 3])
def test_a_wrong_column_of_a_reward_of_one_task(values):
    def explains(log_extra, **_):
        log_extra("why", values)
        return [1.0, 2.0]

    rewards = RewardSet(functions=[ForTask(explains, "text")], on_error="none")
    with pytest.warns(UserWarning, match=r"log_extra\('why', ...\) with other than"):
        found = rewards.score(two_tasks())
    scores = found.values
    assert scores[1:, 0].tolist() == [1.0, 2.0] and found.extras == {}


# ---- runs ----


class Sometimes:
    """A good reward that goes wrong in its second call, the second window's."""

    __name__ = "sometimes"

    def __init__(self, fault) -> None:
        self.fault, self.calls = fault, 0

    def __call__(self, **columns):
        self.calls += 1
        scores = low_ids(**columns)
        return self.fault(scores) if self.calls == 2 else scores


def fails(scores):
    raise TimeoutError("no answer from the judge")


def half_nan(scores):
    return [math.nan if i % 2 else score for i, score in enumerate(scores)]


RUN = {"num_iterations": 1, "max_steps": 6, "beta": 0.0}
"""Three windows of two steps each."""


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_the_error_of_a_reward_for_one_task_names_its_own_line_alone(timeout):
    """The lines of the library around it are left out, in whatever room they stand."""

    def own(completions, **columns):
        raise ZeroDivisionError("no")

    with pytest.raises(RewardError, match=r"raised ZeroDivisionError: no \(test_misbehaving_rewards\.py:\d+\), "):
        RewardSet(functions=[ForTask(own, "text")], timeout=timeout).score(answers())


@pytest.mark.parametrize(("fault", "lost"), [(fails, 16), (half_nan, 8), (lambda scores: scores[1:], 16)])
def test_a_run_goes_on_without_the_bad_rows(make_trainer, fault, lost):
    trainer = make_trainer(rewards=Sometimes(fault), reward_error="none", **RUN)
    windows = []
    show = trainer._show_window
    trainer._show_window = lambda window: windows.append(window) or show(window)
    with pytest.warns(UserWarning, match=r"reward 'sometimes' .* the prompt 'w\d"):
        trainer.train()
    logs = logs_of(trainer)
    assert [log["rewards/sometimes/errors"] for log in logs[::2]] == [0.0, float(lost), 0.0]
    assert [log["rewards/sometimes/timeouts"] for log in logs[::2]] == [0.0] * 3
    active = [sum(row.active for row in window.experiences) for window in windows]
    assert active == [16, 16 - lost, 16]
    assert all(row.advantage == 0.0 for row in windows[1].experiences if not row.active)
    assert logs[2].get("num_unscored_windows", 0.0) == float(lost == 16)
    assert all(math.isfinite(log["loss"]) for log in logs)
    if lost == 16:
        assert [log["grad_norm"] for log in logs[2:4]] == [0.0, 0.0], "the weights do not move"
    assert logs[4]["grad_norm"] > 0


def test_the_good_rows_of_a_window_with_bad_ones_are_compared_among_themselves(make_trainer):
    trainer = make_trainer(rewards=[Sometimes(half_nan), low_ids], reward_error="none", **{**RUN, "max_steps": 4})
    with pytest.warns(UserWarning, match="returned nan"):
        trainer.train()
    table = trainer._window.table
    scored = torch.tensor(table["low_ids"])
    assert scored.isnan().tolist() == [False, True] * 8
    advantages = torch.tensor(table["advantage"]).view(4, 4)
    assert bool((advantages[:, 1::2] == 0).all())
    assert float(advantages[:, 0::2].sum(dim=1).abs().max()) <= FP32 * float(advantages.abs().max())


@pytest.mark.parametrize("fault", [fails, half_nan, lambda scores: scores[1:]])
def test_a_run_ends_with_the_reward_and_the_prompt(make_trainer, fault):
    trainer = make_trainer(rewards=Sometimes(fault), **RUN)
    with pytest.raises(RewardError, match=r"reward 'sometimes' .*the prompt 'w\d.*set reward_error='none'"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert not [name for log in trainer.state.log_history for name in log if name.endswith("/errors")]


def test_a_run_ends_with_a_reward_that_hangs(make_trainer):
    trainer = make_trainer(rewards=Sometimes(hangs), reward_timeout=1.5, **RUN)
    trainer.rewards.functions[0].fault = lambda scores: time.sleep(60)
    start = time.monotonic()
    with pytest.raises(RewardError, match=r"'sometimes' did not return within reward_timeout=1.5 seconds"):
        trainer.train()
    assert time.monotonic() - start < 50


def silent(completions, **_):
    return [None] * len(completions)


def test_a_run_without_any_score_ends_after_some_prompts(make_trainer, monkeypatch):
    trainer = make_trainer(rewards=[silent, silent], **{**RUN, "max_steps": 20})
    message = r"no reward applies to any answer of a whole window: \['silent', 'silent_2'\] gave None to all 16"
    with (
        pytest.warns(UserWarning, match=message) as caught,
        pytest.raises(RewardError, match=message + r".*16 prompts"),
    ):
        trainer.train()
    assert trainer.state.global_step == 6, "the fourth window of four prompts"
    assert len([own for own in caught if "no reward applies" in str(own.message)]) == 1
    assert [log["num_unscored_windows"] for log in logs_of(trainer)[::2]] == [1.0] * 3


def test_a_run_without_any_score_goes_on_where_that_is_asked_for(make_trainer):
    trainer = make_trainer(rewards=silent, reward_error="none", **{**RUN, "max_steps": 10})
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.warns(UserWarning, match="no reward applies"):
        trainer.train()
    assert trainer.state.global_step == 10
    assert all(torch.equal(*pair) for pair in zip(before, trainer.model.parameters(), strict=True))


def test_single_prompts_without_a_score_end_no_run(make_trainer):
    calls = []

    def mostly_silent(completions, **_):
        calls.append(len(completions))
        return [1.0] * len(completions) if len(calls) == 3 else [None] * len(completions)

    trainer = make_trainer(rewards=mostly_silent, **{**RUN, "max_steps": 10})
    trainer.train()
    assert len(calls) == 5


def test_faults_in_a_refill_are_counted_too(make_trainer):
    calls = []

    def moody(completions, **_):
        calls.append(len(completions))
        if len(calls) == 2:
            raise RuntimeError("down")
        return [0.0] * len(completions)

    trainer = make_trainer(
        rewards=[moody, low_ids], reward_weights=[1.0, 0.0], refill_rounds=2, reward_error="none", **RUN
    )
    with pytest.warns(UserWarning, match="'moody' raised RuntimeError: down"):
        trainer.train()
    assert logs_of(trainer)[0]["rewards/moody/errors"] == calls[1] == 16.0
    assert logs_of(trainer)[2]["rewards/moody/errors"] == 0.0


def test_held_out_answers_follow_the_same_policy(make_trainer):
    trainer = make_trainer(rewards=[raises, low_ids], reward_error="none", reward_timeout=60.0)
    rows = [trainer.train_dataset[place] for place in range(4)]
    metrics = Metrics()
    with pytest.warns(UserWarning, match="'raises' raised KeyError"):
        samples = held_out_answers(trainer.pipeline(), rows, 1, 2, metrics=metrics)
    assert all(math.isnan(own.scores[0]) and math.isfinite(own.scores[1]) for own in samples)
    found = reward_summary(trainer.rewards, trainer.policy.stop_token_ids, samples, "eval", metrics)
    assert (found["eval_rewards/raises/errors"], found["eval_rewards/low_ids/errors"]) == (4, 0), "of both batches"
    assert found["eval_reward"] == pytest.approx(sum(float(own.scores[1]) for own in samples) / 4)
    with pytest.raises(RewardError, match="'raises'"):
        held_out_answers(make_trainer(rewards=raises).pipeline(), rows, 1, 2)


# ---- several processes ----


SHARED_RUN = {**TRAINING, **RUN, "per_device_train_batch_size": 2, "num_generations": 8}
"""Three windows of two prompts, whose groups of eight lie on both of two processes."""


def faulty_rank(rank: int, folder: str, on_error: str) -> dict:
    """Two processes train; the reward of the second raises in its second window."""
    calls = []

    def moody(completions, completion_ids, log_metric, **_):
        calls.append(len(completions))
        log_metric(f"only/{rank}", 1.0 + rank)
        if rank == 1 and len(calls) == 2:
            raise ConnectionError("down")
        return [float(ids[0] % 5) for ids in completion_ids]

    args = UniGRPOConfig(folder, **SHARED_RUN, reward_error=on_error)
    trainer = UniGRPOTrainer(tiny_model(), [moody, low_ids], args, prompts(16), processing_class=tiny_processor())
    tables = []
    show = trainer._show_window
    trainer._show_window = lambda window: tables.append(window.table) or show(window)
    message = ""
    try:
        trainer.train()
    except ValueError as error:
        message = str(error)
    return {
        "message": message,
        "step": trainer.state.global_step,
        "lost": [all(math.isnan(score) for score in table["moody"]) for table in tables],
        "logs": [{key: value for key, value in log.items() if "/" in key} for log in logs_of(trainer)],
    }


@pytest.mark.processes
def test_ranks_end_together_or_go_on_together(tmp_path):
    scenes = [("faulty_rank", {"folder": str(tmp_path / name), "on_error": name}) for name in ("raise", "none")]
    ended, went_on = played(2, tmp_path / "out", __name__, *scenes)
    assert "a reward failed on another process; the message of rank 1" in ended[0]["message"]
    assert "reward 'moody' raised ConnectionError: down" in ended[1]["message"]
    assert [own["step"] for own in ended] == [2, 2]
    for own in went_on:
        assert (own["message"], own["step"]) == ("", 6)
        assert own["lost"] == [False, True, False], "a group spans both processes: it counts on neither"
    logs = went_on[0]["logs"]
    assert [log["rewards/moody/errors"] for log in logs[::2]] == [0.0, 8.0, 0.0]
    assert (logs[0]["only/0"], logs[0]["only/1"]) == (1.0, 2.0), "names that differ between processes"


# ---- child processes ----


def test_the_math_worker_serves_on_after_a_call_was_left_behind():
    rows = answers(1, solution=["$2x$"])
    hard = [Sample(row=rows[0].row, completion="\\boxed{9^{9^{9^9}}}", completion_ids=[], task="text")]
    ended = threading.Event()

    def patient(**columns):
        try:
            return math_correctness(**columns, timeout=2.0)
        finally:
            ended.set()

    rewards = RewardSet(functions=[patient], on_error="none")
    right = [Sample(row=rows[0].row, completion="\\boxed{x+x}", completion_ids=[], task="text")]
    rewards.score(right)
    ended.clear()
    pid, rewards.timeout = WORKER.pid, 0.3
    with pytest.warns(UserWarning, match="'patient' did not return"):
        rewards.score(hard)
    rewards.timeout = 60.0
    assert rewards.score(right).values.tolist() == [[1.0]], "after it, and of it no reply is left"
    assert ended.is_set() and not Path(f"/proc/{pid}").exists(), "killed at its own bound, and reaped"


def test_an_evaluation_without_any_score_has_a_reward_that_is_no_number(make_trainer):
    """So that ``metric_for_best_model: eval_reward`` finds it."""

    def down(completions, **_):
        raise RuntimeError("the service is down")

    trainer = make_trainer(rewards=down, eval_rows=prompts(4), reward_error="none")
    found = trainer.evaluate()
    assert math.isnan(found["eval_reward"]) and found["eval_rewards/down/errors"] == 4


def test_answers_with_fewer_rewards_are_not_averaged_with_others():
    none, one, other, both = [False, False], [True, False], [False, True], [True, True]
    assert comparable(torch.tensor([one, none, none, both])).tolist() == [False, True, True, False]
    assert comparable(torch.tensor([both, one, other, one])).tolist() == [False, True, False, True]
    assert comparable(torch.tensor([both, both])).tolist() == [True, True]


@pytest.mark.parametrize("on_error", ["raise", "none"])
def test_a_score_that_its_weight_makes_too_large_is_a_fault(on_error):
    def huge(completions, **_):
        return [3e38, 1.0]

    rewards = RewardSet(functions=[huge], weights=[2.0], on_error=on_error)
    answers = [Sample(row={"prompt": own}, completion="c", completion_ids=[1], task="text") for own in ("p", "q")]
    if on_error == "raise":
        with pytest.raises(RewardError, match=r"'huge' returned 3e\+38, which is too large with a weight of 2.*'p'"):
            rewards.score(answers)
        return
    scores = rewards.score(answers).values
    assert scores[0].isnan().all() and scores[1].tolist() == [1.0]


def test_long_waits_are_said(monkeypatch):
    args = SimpleNamespace(world_size=2, ddp_timeout=1800)
    with pytest.warns(UserWarning, match=r"2 rewards with reward_timeout=1000.0 may take 2000 s.*ddp_timeout=1800"):
        warn_of_waits(args, RewardSet(functions=[len, max], timeout=1000.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_waits(args, RewardSet(functions=[len, max], timeout=600.0))
        warn_of_waits(SimpleNamespace(world_size=1, ddp_timeout=1800), RewardSet(functions=[len, max], timeout=None))


def test_a_refill_keeps_the_columns_of_the_answers_that_stay(make_trainer):
    """The first prompt's group is equal and replaced; every answer has its own column in the table."""

    def noted(prompts, completions, completion_ids, log_extra, **_):
        log_extra("why", [f"because of {own}" for own in prompts])
        return [0.5 if own == "w0 w1" else float(ids[0] % 7) for own, ids in zip(prompts, completion_ids, strict=True)]

    trainer = make_trainer(rewards=noted, refill_rounds=1, shuffle_dataset=False, num_iterations=1, max_steps=1)
    trainer.train()
    table = trainer._window.table
    assert table["why"] == [f"because of {own}" for own in table["prompt"]]
    assert "w0 w1" not in table["prompt"]
