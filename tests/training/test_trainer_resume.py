"""Checkpoints: a resumed run is the uninterrupted one, at every optimizer step, also inside a rollout window."""

from __future__ import annotations

import pytest
import torch

from unigrpo.errors import CheckpointError
from unigrpo.training.checkpoints.run_record import RECORD
from unigrpo.training.checkpoints.window_checkpoints import window_file
from unigrpo.training.checkpoints.window_file import load_window

from ..support.runs import adapted, history
from ..support.tiny import prompts


STEPS = 6
"""Windows of 4 micro-steps x 2 inner updates at accumulation 2: checkpoint 4 lies between two, 6 in the middle of one."""


def options(kind: str) -> dict:
    saving = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "rows": prompts(12, (2, 70, 5))}
    if kind == "full":
        return saving
    return {**saving, "lora": True} if kind == "lora" else {**saving, "model": adapted()}


def run(make_trainer, kind: str, checkpoint=None, **changes):
    trainer = make_trainer(**{**options(kind), **changes})
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


@pytest.mark.parametrize("kind", ["full", "lora", "trained adapter"])
def test_resuming_after_any_step_changes_nothing(make_trainer, tmp_path, kind):
    whole = run(make_trainer, kind)
    expected = history(whole)
    assert len(expected) == STEPS
    assert len(set(expected.values())) == STEPS
    final = {name: value.clone() for name, value in whole.model.named_parameters()}
    # Everywhere inside a window, between two, and at the first update of the next; of an adapter, one of each.
    for step in range(1, 6) if kind == "full" else (2, 4) if kind == "lora" else (2,):
        again = run(
            make_trainer,
            kind,
            str(tmp_path / "run" / f"checkpoint-{step}"),
            save_strategy="no",
            output_dir=str(tmp_path / "again"),
        )
        own = history(again)
        assert {number: own[number] for number in range(step + 1, STEPS + 1)} == {
            number: expected[number] for number in range(step + 1, STEPS + 1)
        }
        for name, value in again.model.named_parameters():
            assert torch.equal(value, final[name]), name


def test_a_resumed_run_logs_as_often_as_it_is_asked_to(make_trainer, tmp_path):
    run(make_trainer, "full", max_steps=2, save_steps=2, logging_steps=5)
    again = run(
        make_trainer, "full", str(tmp_path / "run" / "checkpoint-2"), max_steps=5, save_steps=3, logging_steps=1
    )
    assert [step for step in history(again) if step > 2] == [3, 4, 5]
    assert (tmp_path / "run" / "checkpoint-3").is_dir()


@pytest.mark.smoke
def test_resuming_keeps_a_synchronised_reference(make_trainer, tmp_path):
    sync = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5}
    expected = history(run(make_trainer, "full", **sync))
    for step in (3, 5):
        again = run(make_trainer, "full", str(tmp_path / "run" / f"checkpoint-{step}"), save_strategy="no", **sync)
        assert all(history(again)[number] == expected[number] for number in range(step + 1, STEPS + 1))


def test_checkpoint_holds_the_window_only_inside_it(make_trainer, tmp_path):
    run(make_trainer, "lora")
    sizes, steps = [], []
    for step in range(1, STEPS + 1):
        rows, order, micro_step = load_window(window_file(tmp_path / "run" / f"checkpoint-{step}", 0))[:3]
        sizes.append(len(rows))
        steps.append(micro_step)
        assert sorted(order) == list(range(len(rows)))
    assert sizes == [16, 16, 16, 0, 16, 16]
    assert steps == [2, 4, 6, 8, 10, 12]


CHANGES = [
    {"per_device_train_batch_size": 2},
    {"per_device_train_batch_size": 8},
    {"steps_per_generation": 2, "per_device_train_batch_size": 8},
    {"gradient_accumulation_steps": 4},
    {"num_iterations": 4},
]


@pytest.mark.parametrize("step", [2, 4])
def test_rollouts_of_another_size_are_an_error(make_trainer, tmp_path, step):
    """Inside a window and between two."""
    run(make_trainer, "lora", max_steps=step, rows=prompts(12))
    checkpoint = str(tmp_path / "run" / f"checkpoint-{step}")
    for changes in CHANGES:
        name, value = next(iter(changes.items()))
        with pytest.raises(
            CheckpointError, match=rf"checkpoint-\d, of run \w+: .*{name} was \d and is {value}.*Set them back"
        ):
            run(make_trainer, "lora", checkpoint, rows=prompts(12), save_strategy="no", **changes)


def test_a_checkpoint_of_the_model_alone_is_an_error(make_trainer, tmp_path):
    """Going on without its optimizer and schedule would begin them anew, at a later step."""
    run(make_trainer, "lora", max_steps=2, save_only_model=True)
    folder = tmp_path / "run" / "checkpoint-2"
    assert not (folder / "optimizer.pt").exists()
    told = (
        rf"cannot resume from {folder}: it has no optimizer.pt and no scheduler.pt.*save_only_model=True.*Start a new"
    )
    for checkpoint in (str(folder), True):
        with pytest.raises(CheckpointError, match=told):
            run(make_trainer, "lora", checkpoint)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-1", "checkpoint-2", RECORD]


def test_a_checkpoint_of_the_model_alone_points_to_one_with_its_optimizer(make_trainer, tmp_path):
    run(make_trainer, "lora", max_steps=1)
    first = tmp_path / "run" / "checkpoint-1"
    run(make_trainer, "lora", str(first), max_steps=2, save_only_model=True)
    with pytest.raises(CheckpointError, match=rf"checkpoint-2: it has no.*Resume from {first}, which has them, or"):
        run(make_trainer, "lora", True)
