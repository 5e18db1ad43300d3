"""Answers are scored as they finish: which calls begin early, that nothing else changes, and what it saves."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from unigrpo.errors import RewardError
from unigrpo.rewards import get_reward
from unigrpo.rollout.early_calls import EarlyCalls, overlaps
from unigrpo.rollout.rewards import RewardSet
from unigrpo.runs.build import ForTask

from ..support.answers import good_later, raises_later, sample
from ..support.runs import logs_of
from ..support.tiny import low_ids, prompts


class Service:
    """A reward that waits: the length of each answer, None for every fifth, and what it was called with."""

    overlaps = True
    __name__ = "service"

    def __init__(self, seconds=0.0):
        self.seconds, self.calls, self.lock = seconds, [], threading.Lock()

    def __call__(self, completions, colour, log_extra, log_metric, trainer_state, **_):
        with self.lock:
            self.calls.append((list(completions), list(colour)))
        time.sleep(self.seconds)
        log_extra("seen", [len(own) for own in completions])
        log_metric("service/failed", 1.0)
        log_metric("service/prompt_tokens", 7.0)
        log_metric("service/completion_tokens", 2.0)
        log_metric("service/mean_length", sum(map(len, completions)) / len(completions))
        return [None if len(own) % 5 == 0 else float(len(own)) for own in completions]


def pipe(rewards, group=2, rank=0):
    args = SimpleNamespace(num_generations=group)
    return SimpleNamespace(rewards=rewards, args=args, rank=rank, trainer_state=None)


def window(count, first=0):
    """Answers of 1, 2, ... letters; from the fourth on with a column that the others lack."""
    rows = [{"prompt": f"q{i}", **({"colour": "red"} if i >= 3 else {})} for i in range(count)]
    return [sample(row, "x" * (place + 1), index=first + place) for place, row in enumerate(rows)]


def early(rewards, batches, samples, group=2):
    calls = EarlyCalls(pipe(rewards, group), [own.row for own in samples], [own.index for own in samples])
    for batch in batches:
        calls.on_answers([samples[place] for place in batch])
    return calls.begun


@pytest.mark.smoke
@pytest.mark.parametrize("batches", [[range(6)], [[0, 1], [2, 3], [4, 5]], [[5, 1, 2], [0, 4, 3]], [[0, 1, 2, 3]]])
def test_early_calls_change_no_score_no_column_and_no_count(batches):
    samples = window(6, first=10)
    alone = RewardSet([Service(), good_by_length]).score(samples)
    rewards = RewardSet([Service(), good_by_length])
    found = rewards.score(samples, begun=early(rewards, batches, samples))
    assert found.values.nan_to_num(-1).tolist() == alone.values.nan_to_num(-1).tolist()
    assert found.extras == alone.extras and found.extras["seen"] == [1, 2, 3, 4, 5, 6]
    calls = rewards.functions[0].calls
    assert sorted(text for texts, _ in calls for text in texts) == ["x" * length for length in range(1, 7)]
    assert found.metrics["service/failed"] == [float(len(calls))], "a count adds up over calls"
    tokens = found.metrics["service/prompt_tokens"], found.metrics["service/completion_tokens"]
    assert tokens == ([7.0 * len(calls)], [2.0 * len(calls)])
    assert found.metrics["service/mean_length"] == [pytest.approx(3.5)], "a mean is weighted by answers"
    assert len(found.seconds["service"]) == len(calls) and len(found.seconds["good_by_length"]) == 1


def good_by_length(completions, **_):
    return [float(len(own)) for own in completions]


def test_a_call_has_whole_groups_in_order_and_all_columns():
    rewards, samples = RewardSet([Service(), good_by_length]), window(6)
    begun = early(rewards, [[5, 0, 2], [1, 3], [4]], samples)
    assert [own.indices for own in begun] == [[0, 1, 2, 3], [4, 5]]
    rewards.score(samples, begun=begun)
    # The first call has a column that only later rows have.
    assert sorted(rewards.functions[0].calls) == [
        (["x", "xx", "xxx", "xxxx"], [None, None, None, "red"]),
        (["xxxxx", "xxxxxx"], ["red", "red"]),
    ]
    assert not early(rewards, [range(6)], samples), "a rollout of one batch has nothing to overlap with"


def test_which_rewards_overlap():
    class Awaited:
        async def __call__(self, **_):
            return []

    class Waits(Awaited):
        overlaps = False

    remote = get_reward("remote", url="http://127.0.0.1:1/")
    assert [
        overlaps(own) for own in (remote, ForTask(remote, "text"), good_later, Awaited(), partial(good_later))
    ] == [True] * 5
    assert [overlaps(own) for own in (low_ids, Waits(), ForTask(low_ids, "text"), len)] == [False] * 4
    assert EarlyCalls(pipe(RewardSet([low_ids])), [], []).on_answers is None


def test_coroutines_of_several_batches_go_on_together():
    both = threading.Barrier(2)

    async def meets(completions, **_):
        await asyncio.to_thread(both.wait, 20)
        return [float(len(own)) for own in completions]

    rewards, samples = RewardSet([meets]), window(4)
    found = rewards.score(samples, begun=early(rewards, [[0, 1], [2, 3]], samples))
    assert found.values[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("reward", [raises_later, lambda **_: 1 / 0], ids=["later", "at once"])
def test_an_early_call_that_fails_is_a_failed_reward(reward):
    def fails(**columns):
        return reward(**columns)

    fails.overlaps = True
    samples = window(4)
    rewards = RewardSet([fails, good_by_length])
    with pytest.raises(RewardError, match=r"'fails' raised (ConnectionError|ZeroDivisionError)"):
        rewards.score(samples, begun=early(rewards, [[0, 1], [2, 3]], samples))
    rewards = RewardSet([fails, good_by_length], on_error="none")
    with pytest.warns(UserWarning, match="'fails' raised"):
        found = rewards.score(samples, begun=early(rewards, [[0, 1], [2, 3]], samples))
    assert found.values[:, 0].isnan().all() and found.values[:, 1].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert found.lost.tolist() == [True, False] and found.faults.tolist() == [[4, 0], [0, 0]]


def test_a_fault_of_an_early_call_names_its_own_rows():
    def fails(prompts, **_):
        return [1.0, 1.0] if prompts[0] == samples[0].row["prompt"] else 1 / 0

    fails.overlaps = True
    samples = [replace(own, row={**own.row, "prompt": f"prompt {own.index}"}) for own in window(4)]
    rewards = RewardSet([fails])
    with pytest.raises(RewardError, match="called with 2 answers, the first to the prompt 'prompt 2'"):
        rewards.score(samples, begun=early(rewards, [[0, 1], [2, 3]], samples))


def test_an_early_call_is_bounded():
    rewards, samples = RewardSet([Service(30.0)], timeout=0.2, on_error="none"), window(4)
    began = time.perf_counter()
    with pytest.warns(UserWarning, match="did not return within reward_timeout=0.2"):
        found = rewards.score(samples, begun=early(rewards, [[0, 1], [2, 3]], samples))
    assert found.lost.tolist() == [True] and found.faults.tolist() == [[4, 1]] and time.perf_counter() - began < 20


class Slow:
    """As ``low_ids``, from a service that takes its time for each answer."""

    __name__ = "slow"

    def __init__(self, overlaps):
        self.overlaps = overlaps

    def __call__(self, prompts, completions, completion_ids, **_):
        time.sleep(0.02 * len(completions))
        return low_ids(prompts, completions, completion_ids)


RUN = {"num_generations": 4, "max_steps": 2, "steps_per_generation": 2, "rollout_batch_size": 4, "logging_steps": 1}


@pytest.mark.parametrize("batch", [4, None], ids=["four batches", "one batch"])
def test_a_run_with_overlap_is_the_run_without(make_trainer, tmp_path, batch):
    """Losses and rewards to the last digit, and the first call comes while answers are still being written."""
    losses, waits = {}, {}
    for on in (False, True):
        options = {**RUN, "rollout_batch_size": batch, "output_dir": str(tmp_path / f"{on}"), "num_iterations": 1}
        trainer = make_trainer(rewards=[Slow(on)], rows=prompts(8), **options)
        trainer.train()
        logs = logs_of(trainer)
        losses[on] = [(log["loss"], log["grad_norm"], log.get("reward")) for log in logs]
        waits[on] = sum(log.get("time/reward", 0.0) for log in logs)
    assert losses[True] == losses[False]
    if batch is not None:
        assert waits[True] < 0.7 * waits[False], waits
