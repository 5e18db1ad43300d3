"""A loss or gradient that is not finite: its rows are named, the weights stay as they were, a checkpoint lies ready."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unigrpo.errors import NonFiniteError
from unigrpo.training.batches import Unit
from unigrpo.training.finite import FiniteGuard

from ..support.records import row
from ..support.runs import diverging


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_bad_step_names_its_rows_and_leaves_a_checkpoint(make_trainer, what):
    trainer = diverging(make_trainer(), 2, what)
    with pytest.raises(
        NonFiniteError, match=rf"step 3 is not finite: {what}.*row \d+ \(task text, .*prompt 'w"
    ) as caught:
        trainer.train()
    folder = Path(trainer.args.output_dir) / "checkpoint-2"
    assert str(folder) in str(caught.value)
    assert (folder / "model.safetensors").exists() and (folder / "rollout_window_0.safetensors").exists()
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters())


def test_the_run_goes_on_from_that_checkpoint_as_if_nothing_had_happened(make_trainer, tmp_path):
    whole = make_trainer(output_dir=str(tmp_path / "whole"))
    whole.train()
    with pytest.raises(NonFiniteError):
        diverging(make_trainer(), 3, "gradient").train()
    resumed = make_trainer()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    for own, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(own, other)


def test_a_checkpoint_of_that_step_is_not_written_twice(make_trainer):
    trainer = diverging(make_trainer(save_strategy="steps", save_steps=1), 2, "loss")
    saved = []
    real = trainer._save_checkpoint
    trainer._save_checkpoint = lambda *args, **kwargs: saved.append(trainer.state.global_step) or real(*args, **kwargs)
    with pytest.raises(NonFiniteError):
        trainer.train()
    assert saved == [1, 2]


def test_a_folder_of_another_run_is_not_taken_for_the_saved_state(make_trainer, tmp_path):
    trainer = diverging(make_trainer(), 0, "loss")
    stale = tmp_path / "run" / "checkpoint-0"
    stale.mkdir(parents=True)
    with pytest.raises(NonFiniteError):
        trainer.train()
    assert (stale / "model.safetensors").exists()


def test_a_bad_given_answer_is_named(make_trainer):
    rows = [{"prompt": "w1 w2", "completion": "w5 w6 w7"}]
    trainer = make_trainer(sft_rows=rows, sft_weight=1e300, rewards=lambda completions, **_: [1.0] * 16, beta=0.0)
    with pytest.raises(NonFiniteError, match="gradient of an optimizer step with given answers alone"):
        trainer.train()
    guard = FiniteGuard()
    guard.check_given(torch.tensor([torch.nan]), Unit((0,), 0), [row(index=3)])
    assert "sft loss nan of the given answer with tokens [300, 301" in guard.flush()


@pytest.mark.smoke
def test_only_the_bad_rows_of_a_unit_are_named():
    rows = [row(index=10 + i) for i in range(3)]
    guard = FiniteGuard()
    table = {"prompt": ["first", "second", "third"]}
    guard.check_loss(torch.tensor([0.5, float("nan")]), Unit((2, 1), 0), rows, 1, table)
    found = guard.flush()
    assert "row 11 (task text, advantage 1, prompt 'second') at inner update 2" in found
    assert "row 12" not in found and "nan" in found
    assert guard.flush() == ""


def test_a_norm_that_is_not_finite_names_all_rows_of_the_step():
    rows, guard = [row(index=10 + i) for i in range(3)], FiniteGuard()
    for norm, named in ((torch.tensor(5.0), False), (torch.tensor(float("nan")), True), (float("inf"), True)):
        guard.check_loss(torch.tensor([0.5, 1.0]), Unit((2, 1), 0), rows, 0, {})
        guard.check_norm(norm, rows, {})
        found = guard.flush()
        assert ("gradient of an optimizer step with row 12" in found and "row 11" in found) == named
        assert "row 10" not in found


def test_the_norm_is_taken_once_a_step(make_trainer, monkeypatch):
    taken = []
    usual = torch.nn.utils.get_total_norm
    monkeypatch.setattr("torch.nn.utils.clip_grad._get_total_norm", lambda *a, **k: taken.append(1) or usual(*a, **k))
    trainer = make_trainer(max_steps=3)
    trainer.train()
    assert len(taken) == 3 and all(log["grad_norm"] > 0 for log in trainer.state.log_history[:3])
