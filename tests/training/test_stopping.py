"""Ctrl-C and SIGTERM: the last good state is saved once, the run goes on as if nothing had been, and what to type is said."""

from __future__ import annotations

import signal
from functools import wraps
from pathlib import Path

import pytest
from transformers import TrainerCallback

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.errors import Interrupted
from unigrpo.training.checkpoints.files import fault
from unigrpo.training.checkpoints.run_folder import checkpoint_folder, steps_of

from ..support.processes import played
from ..support.runs import history
from ..support.tiny import TRAINING, low_ids, prompts, tiny_model, tiny_processor


ENDS = {signal.SIGINT: Interrupted, signal.SIGTERM: SystemExit}

SETTINGS = {"max_steps": 6, "learning_rate": 1e-3, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2}


def signalled(trainer, where: str, step: int, number: int):
    """``trainer``, which gets a signal once it is at ``where`` in a step; ``step`` are done."""
    visits = []

    def at(place: str) -> None:
        if place == where and trainer.state.global_step == step:
            visits.append(place)
            # A step that is given up has collected something by then.
            if len(visits) == (2 if place == "update" else 1):
                signal.raise_signal(number)

    def around(name: str, place: str) -> None:
        real = getattr(trainer, name)

        def wrapped(*args, **kwargs):
            at(place)
            return real(*args, **kwargs)

        setattr(trainer, name, wrapped)

    class Watching(TrainerCallback):
        def on_optimizer_step(self, *_, **__):
            at("optimizer")

        def on_log(self, *_, **__):
            at("log")

    around("compute_loss", "update")
    around("_add_files", "checkpoint")
    around("evaluate", "evaluation")
    trainer.add_callback(Watching())
    scored = trainer.rewards.functions[0]

    @wraps(scored)
    def reward(**columns):
        at("rollout")
        return scored(**columns)

    trainer.rewards.functions[0] = reward
    return trainer


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The history of the same run, left alone."""
    return trained(tmp_path_factory.mktemp("whole"))


def trained(out: Path) -> dict:
    args = UniGRPOConfig(str(out), **{**TRAINING, **SETTINGS})
    trainer = UniGRPOTrainer(tiny_model(), low_ids, args, prompts(16), prompts(2), processing_class=tiny_processor())
    trainer.train()
    return history(trainer)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("number", "where", "step", "saved"),
    [
        (signal.SIGINT, "rollout", 4, 4),
        (signal.SIGTERM, "update", 5, 5),
        (signal.SIGINT, "optimizer", 2, 3),
        (signal.SIGTERM, "log", 2, 2),
        (signal.SIGINT, "evaluation", 2, 2),
        (signal.SIGINT, "optimizer", 5, 6),
    ],
)
def test_a_stopped_run_has_its_last_state_and_goes_on_as_if_nothing_had_been(
    number, where, step, saved, make_trainer, uninterrupted, tmp_path, capsys
):
    out = tmp_path / "run"
    stopped = signalled(make_trainer(eval_rows=prompts(2), **SETTINGS), where, step, number)
    with pytest.raises(ENDS[number]) as end:
        stopped.train()
    assert number == signal.SIGINT or end.value.code == 143
    assert steps_of(out) == [saved] and fault(checkpoint_folder(out, saved)) is None
    said = capsys.readouterr().err
    assert (
        said.count(
            f"stopped by {number.name} after step {saved}, saved in {checkpoint_folder(out, saved)}; to go on: "
        )
        == 1
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = make_trainer(eval_rows=prompts(2), **SETTINGS)
    again.train(resume_from_checkpoint=True)
    assert history(again) == uninterrupted


def test_before_the_first_step_is_done_there_is_nothing_to_save(make_trainer, tmp_path, capsys):
    with pytest.raises(Interrupted, match="there is nothing new to save; start it again"):
        signalled(make_trainer(), "rollout", 0, signal.SIGINT).train()
    assert steps_of(tmp_path / "run") == []


def test_a_second_signal_ends_a_run_at_once_and_tears_nothing(make_trainer, tmp_path):
    """It comes while the checkpoint is written."""
    trainer = signalled(make_trainer(save_strategy="steps", save_steps=2), "update", 3, signal.SIGINT)
    real = trainer._add_files

    def again(folder: Path):
        if trainer.state.global_step == 3:
            signal.raise_signal(signal.SIGINT)
        return real(folder)

    trainer._add_files = again
    with pytest.raises(KeyboardInterrupt) as end:
        trainer.train()
    assert not isinstance(end.value, Interrupted)
    assert steps_of(tmp_path / "run") == [2]
    later = make_trainer()
    later.train(resume_from_checkpoint=True)
    assert later.state.global_step == 4


def test_a_signal_that_is_ignored_stays_so(make_trainer):
    """As ``nohup`` and a shell's background jobs ask for."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trainer = signalled(make_trainer(max_steps=2), "update", 1, signal.SIGINT)
        trainer.train()
        assert trainer.state.global_step == 2
    finally:
        signal.signal(signal.SIGINT, before)


# ---- several processes ----


def stopped_rank(rank: int, folder: str) -> dict:
    """A run of two processes, of which the second alone gets a signal, in the middle of a step."""
    args = UniGRPOConfig(f"{folder}/run", **{**TRAINING, "max_steps": 6})
    trainer = UniGRPOTrainer(tiny_model(), low_ids, args, prompts(16), processing_class=tiny_processor())
    if rank == 1:
        signalled(trainer, "update", 2, signal.SIGTERM)
    code = 0
    try:
        trainer.train()
    except SystemExit as end:
        code = end.code
    return {"code": code, "step": trainer.state.global_step, "checkpoints": steps_of(f"{folder}/run")}


@pytest.mark.processes
def test_several_processes_stop_together_at_the_next_step(tmp_path):
    [results] = played(2, tmp_path, __name__, ("stopped_rank", {"folder": str(tmp_path)}))
    assert results == [{"code": 143, "step": 3, "checkpoints": [3]}] * 2


# ---- the last metrics ----


SHORT = {"gradient_accumulation_steps": 1, "steps_per_generation": 2}
"""A micro-step is a step."""


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ({"logging_steps": 10}, [4]),
        ({"logging_steps": 3}, [3, 4]),
        ({"logging_steps": 2}, [2, 4]),
        ({"logging_strategy": "no"}, []),
        ({"logging_strategy": "epoch", "max_steps": 3}, [3]),
    ],
)
def test_the_last_metrics_are_logged_once_also_of_a_run_shorter_than_logging_steps(change, steps, make_trainer):
    trainer = make_trainer(**SHORT, **change)
    trainer.train()
    logged = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["step"] for log in logged] == steps
    assert not steps or "reward" in logged[0]


def test_a_run_that_a_callback_ends_logs_its_last_metrics_too(make_trainer):
    class Enough(TrainerCallback):
        def on_log(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 2

        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 3

    trainer = make_trainer(**SHORT, logging_steps=10)
    trainer.add_callback(Enough())
    trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "loss" in log] == [3]


@pytest.mark.parametrize("terminal", [False, True])
def test_without_a_terminal_a_log_is_one_line(terminal, make_trainer, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    trainer = make_trainer(
        **SHORT, disable_tqdm=False, max_steps=3, logging_steps=2, eval_rows=prompts(2), eval_strategy="steps"
    )
    capsys.readouterr()
    trainer.train()
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("step ")]
    if terminal:
        assert "\r" in said and "rollout 1/" in said and lines == []
    else:
        assert "\r" not in said
        assert [line.split(":")[0] for line in lines] == ["step 2/3", "step 2/3", "step 3/3", "step 3/3"]
        assert "reward 0." in lines[0] and lines[1].startswith("step 2/3: eval_reward 0.")
