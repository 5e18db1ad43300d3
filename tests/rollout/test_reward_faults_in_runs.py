"""Runs whose rewards fail: rows that are lost, windows without a score, held-out answers, several processes."""

from __future__ import annotations

import math
import time
import warnings
from types import SimpleNamespace

import pytest
import torch

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.errors import RewardError
from unigrpo.rollout.rewards import RewardSet
from unigrpo.training.evaluation import comparable, held_out_answers, reward_summary
from unigrpo.training.metrics import Metrics
from unigrpo.training.setup import warn_of_waits

from ..support.answers import raises
from ..support.processes import played
from ..support.runs import logs_of
from ..support.tiny import TRAINING, low_ids, prompts, tiny_model, tiny_processor
from ..support.tolerances import FP32


def test_arguments_reach_the_rewards(make_trainer):
    usual, own = make_trainer(), make_trainer(reward_error="none", reward_timeout=None)
    assert (usual.rewards.on_error, usual.rewards.timeout) == ("raise", 600.0)
    assert usual.rewards.timeout < usual.args.ddp_timeout
    assert (own.rewards.on_error, own.rewards.timeout) == ("none", None)


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
    trainer = make_trainer(rewards=Sometimes(lambda scores: time.sleep(60)), reward_timeout=1.5, **RUN)
    start = time.monotonic()
    with pytest.raises(RewardError, match=r"'sometimes' did not return within reward_timeout=1.5 seconds"):
        trainer.train()
    assert time.monotonic() - start < 50


def silent(completions, **_):
    return [None] * len(completions)


def test_a_run_without_any_score_ends_after_some_prompts(make_trainer):
    trainer = make_trainer(rewards=[silent, silent], **{**RUN, "max_steps": 20})
    message = r"no reward applies to any answer of a whole window: \['silent', 'silent_2'\] gave None to all 16"
    with pytest.warns(UserWarning, match=message) as caught:
        with pytest.raises(RewardError, match=message + r".*16 prompts"):
            trainer.train()
    assert trainer.state.global_step == 6, "the fourth window of four prompts"
    assert len([own for own in caught if "no reward applies" in str(own.message)]) == 1
    assert [log["num_unscored_windows"] for log in logs_of(trainer)[::2]] == [1.0] * 3


@pytest.mark.parametrize("exception", [None, 20])
def test_a_run_whose_prompts_teach_nothing_says_so_once(make_trainer, exception):
    """``exception``: the number of an answer that is rewarded unlike those of its group."""
    seen = []

    def constant(completions, **_):
        seen.extend(completions)
        return [float(number == exception) for number in range(len(seen) - len(completions), len(seen))]

    trainer = make_trainer(rewards=constant, **{**RUN, "max_steps": 8})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    said = [str(own.message) for own in caught if "rewarded alike" in str(own.message)]
    assert len(said) == (exception is None)
    assert all("each of the first 16 prompts" in text for text in said)


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

    options = {"reward_weights": [1.0, 0.0], "refill_rounds": 2, "reward_error": "none", **RUN}
    trainer = make_trainer(rewards=[moody, low_ids], **options)
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
