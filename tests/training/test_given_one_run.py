"""A fine-tuning run keeps what a run of reinforcement learning keeps: it never goes on as another, and its folder is its own."""

from __future__ import annotations

import json

import pytest

from unigrpo.errors import CheckpointError
from unigrpo.training.checkpoints.run_record import read_record

from ..support.given_runs import TEXT, given_trainer
from .test_one_run import contents, moved_model


SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}

OTHERS = {
    "model": ({"model": moved_model}, r"model was MMaDA\w+ with weights \w+ and is MMaDA"),
    "adapter": ({"lora": True}, 'adapter was "none" and is "LORA"'),
    "seed": ({"seed": 3}, "seed was 42 and is 3"),
    "batch": ({"per_device_train_batch_size": 4}, "per_device_train_batch_size was 8 and is 4"),
    "length": ({"max_length": 20}, "max_length was 24 and is 20"),
    "objective": ({"task_overrides": {"text": {"coefficient": 2.0}}}, r"objective.text.coefficient was 0.5 and is 2.0"),
    "mixture": ({"sampling_weights": {"train_dataset": 2.0}}, "sampling_weights was null and is"),
    "optimizer": ({"optim": "adafactor"}, 'optim was "adamw_torch" and is "adafactor"'),
}  # fmt: skip


@pytest.fixture(scope="module", name="stored")
def finished_run(tmp_path_factory):
    """A run's folder after one step and ``save_model``; nobody may change it."""
    folder = tmp_path_factory.mktemp("run")
    trainer = given_trainer(folder, **SAVING)
    trainer.train()
    trainer.save_model()
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_never_goes_on_as_another_one(stored, name):
    changes, told = OTHERS[name]
    changes = {key: value() if key == "model" else value for key, value in changes.items()}
    before = contents(stored)
    said = rf"(?s)resume from {stored}/checkpoint-1, of run \w+: .*{told}.*what its checkpoints hold was made with them. Set them back"
    with pytest.raises(CheckpointError, match=said):
        given_trainer(stored, **{**SAVING, **changes}).train(resume_from_checkpoint=True)
    assert contents(stored) == before


def test_a_used_folder_is_an_error_with_the_choices(stored):
    before = contents(stored)
    with pytest.raises(CheckpointError, match=r"checkpoint-1.* of an earlier run.*another output_dir"):
        given_trainer(stored, **SAVING).train()
    assert contents(stored) == before


def test_what_changes_on_the_way_is_told_and_overwrite_starts_anew(tmp_path):
    given_trainer(tmp_path, **SAVING).train()
    first = read_record(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.warns(
        UserWarning, match=r"other settings: .*learning_rate was 0.001 and is 0.01; max_steps was 1 and is 2"
    ):
        given_trainer(tmp_path, **{**SAVING, "max_steps": 2, "learning_rate": 1e-2}).train(resume_from_checkpoint=True)
    again = read_record(tmp_path)
    assert again.run_id == first.run_id == read_record(tmp_path / "checkpoint-2").run_id
    assert again.fingerprint != first.fingerprint
    given_trainer(tmp_path, TEXT, overwrite=True, seed=3, **SAVING).train()
    assert read_record(tmp_path).run_id != first.run_id and (tmp_path / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "unigrpo_run.json").read_text())["kept"]["seed"] == 3
