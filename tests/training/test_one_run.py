"""A folder is one run's, and a run that goes on is the run that began."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from unigrpo import UniGRPOConfig
from unigrpo.config.task import TASK_KEYS
from unigrpo.errors import CheckpointError
from unigrpo.training.checkpoints.files import MANIFEST, seal
from unigrpo.training.checkpoints.identity import KEPT, SILENT, TOLD, dataset_digest, weights_digest
from unigrpo.training.checkpoints.run_folder import steps_of
from unigrpo.training.checkpoints.run_record import RECORD, read_record, write_record

from ..support.runs import adapted, history
from ..support.saving import recorded, without_identity
from ..support.tiny import low_ids, prompts, tiny_model


pytestmark = pytest.mark.smoke

STEPS = 3
"""Within a window of four: checkpoints 1 to 3 hold it."""


def short(completions, **_):
    return [float(len(text)) for text in completions]


def never(**_):
    pytest.fail("a rollout was made")


@pytest.fixture(scope="module", name="shared")
def folder_of_the_module(tmp_path_factory):
    return tmp_path_factory.mktemp("shared") / "run"


@pytest.fixture(name="stored")
def finished_run(make_trainer, shared, tmp_path):
    """A copy of a run's folder after ``STEPS`` steps and ``save_model``."""
    if not shared.exists():
        trainer = recorded(make_trainer, shared, max_steps=STEPS)
        trainer.train()
        trainer.save_model()
    return Path(shutil.copytree(shared, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def again(make_trainer, out: Path, **changes):
    """A trainer that would go on with the run in ``out``."""
    return recorded(make_trainer, out, **{"max_steps": STEPS, **changes})


# ---- another run is refused ----


def moved_model():
    model = tiny_model()
    with torch.no_grad():
        model.model.transformer.wte.weight[0, 0] += 1
    return model


OTHERS = {
    "model": ({"model": moved_model}, r"model was MMaDAForMaskedDiffusion with weights \w+ and is MMaDA.* with weights"),
    "adapter": ({"lora": True}, 'adapter was "none" and is "LORA"'),
    "algorithm": ({"algorithm": "wd1", "beta": 0.04}, 'algorithm was "unigrpo" and is "wd1"'),
    "part": ({"noising": "random"}, 'text.noising was "structured" and is "random"'),
    "beta": ({"beta": 0.5}, "text.beta was 0.04 and is 0.5"),
    "reward": ({"rewards": short}, r'rewards was \[.*"low_ids".* and is \[.*"short"'),
    "another reward": ({"rewards": [low_ids, short]}, r'rewards was \[.*"low_ids".* and is \[.*"short"'),
    "weights": ({"reward_weights": [2.0]}, r"rewards was \[.*1.0.*\] and is \[.*2.0.*\]"),
    "seed": ({"seed": 3}, "seed was 42 and is 3"),
    "batch": ({"per_device_train_batch_size": 8}, "per_device_train_batch_size was 4 and is 8"),
    "generations": ({"num_generations": 8}, "num_generations was 4 and is 8"),
    "chat template": ({"chat_template_kwargs": {"bos_token": "w9"}}, r'chat_template_kwargs was null and is \{"bos_token": "w9"\}'),
    "optimizer": ({"optim": "adafactor"}, 'optim was "adamw_torch" and is "adafactor"'),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:algorithm")
@pytest.mark.parametrize("name", OTHERS)
def test_a_run_never_goes_on_as_another_one(make_trainer, stored, name):
    changes, told = OTHERS[name]
    changes = {key: value() if key == "model" else value for key, value in changes.items()}
    before = contents(stored)
    trainer = again(make_trainer, stored, **changes)
    with pytest.raises(
        CheckpointError, match=rf"(?s)resume from {stored}/checkpoint-3, of run \w+: .*{told}.*Set them back"
    ):
        trainer.train(resume_from_checkpoint=True)
    assert contents(stored) == before


def test_another_seed_is_refused_before_the_first_checkpoint_too(make_trainer, stored):
    """A run that was killed in its first steps has left its log alone."""
    for step in steps_of(stored):
        shutil.rmtree(stored / f"checkpoint-{step}")
    before = contents(stored)
    with (
        pytest.warns(UserWarning, match="no checkpoint yet"),
        pytest.raises(CheckpointError, match="seed was 42 and is 3"),
    ):
        again(make_trainer, stored, seed=3, rewards=low_ids).train(resume_from_checkpoint=True)
    assert contents(stored) == before


def as_another_run(folder: Path, **changes) -> None:
    """Gives a checkpoint another identity."""
    write_record(folder, replace(read_record(folder), **changes))
    (folder / MANIFEST).unlink()
    seal(folder)


def test_a_checkpoint_of_another_run_is_never_taken(make_trainer, stored, tmp_path):
    as_another_run(stored / "checkpoint-3", run_id="000000000000")
    with pytest.raises(CheckpointError, match=r"checkpoint-3 in another run's folder: .*holds checkpoint-3"):
        again(make_trainer, stored, rewards=never).train(resume_from_checkpoint=str(stored / "checkpoint-3"))
    trainer = again(make_trainer, stored)
    with pytest.warns(
        UserWarning, match=r"checkpoint-3 is skipped: it is of run 000000000000, and the folder of run \w+"
    ):
        trainer.train(resume_from_checkpoint=True)
    assert read_record(stored / "checkpoint-3").run_id == read_record(stored).run_id


def test_a_checkpoint_without_an_identity_resumes_with_a_warning(make_trainer, stored):
    as_another_run(stored / "checkpoint-3")
    (stored / RECORD).unlink()
    without_identity(stored / "checkpoint-3")
    with pytest.warns(UserWarning, match=r"checkpoint-3 does not say of which run it is"):
        again(make_trainer, stored, seed=3).train(resume_from_checkpoint=True)


# ---- what may change ----

CHANGED = {
    "learning rate": ({"learning_rate": 4e-4}, 2, "learning_rate was 0.001 and is 0.0004", {3: 4e-4 / 3}),
    "max_steps": ({"max_steps": 4}, 3, "max_steps was 3 and is 4", {4: 1e-3 / 4}),
    "schedule": ({"lr_scheduler_type": "constant"}, 2, 'lr_scheduler_type was "linear" and is "constant"', {3: 1e-3}),
    "decay": ({"weight_decay": 0.5}, 2, "weight_decay was 0.0 and is 0.5", {3: 1e-3 / 3}),
    "data": ({"rows": prompts(12)}, 2, "train_dataset was 16 rows with contents .* and is 12 rows", {3: 1e-3 / 3}),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_changes_on_the_way_is_told_and_holds_from_the_next_step_on(make_trainer, stored, name):
    """A run that was done had a learning rate of 0 at its end, which is none for the steps that are added."""
    changes, step, told, rates = CHANGED[name]
    trainer = again(make_trainer, stored, **changes)
    with pytest.warns(
        UserWarning, match=rf"goes on from .*checkpoint-{step} with other settings: .*{told}.*hold from here"
    ):
        trainer.train(resume_from_checkpoint=str(stored / f"checkpoint-{step}"))
    assert {own: history(trainer)[own][2] for own in rates} == pytest.approx(rates)
    assert trainer.optimizer.param_groups[0]["weight_decay"] == changes.get("weight_decay", 0.0)
    identities = [
        read_record(folder) for folder in (stored, stored / f"checkpoint-{max(rates)}", stored / "checkpoint-1")
    ]
    assert len({own.run_id for own in identities}) == 1 and len({own.fingerprint for own in identities[:2]}) == 1
    assert identities[0].fingerprint != identities[2].fingerprint


@pytest.mark.filterwarnings("error:the run goes on")
def test_logging_saving_and_paths_change_in_silence(make_trainer, stored, tmp_path):
    """Also into another folder: there it stays the same run."""
    changes = {
        "logging_steps": 2,
        "save_steps": 3,
        "save_total_limit": 1,
        "rollout_batch_size": 4,
        "reward_timeout": None,
    }
    again(make_trainer, tmp_path / "moved", **changes).train(resume_from_checkpoint=str(stored / "checkpoint-2"))
    assert read_record(tmp_path / "moved").run_id == read_record(stored).run_id
    assert read_record(tmp_path / "moved").fingerprint == read_record(stored).fingerprint


def test_every_key_that_is_sorted_exists():
    known = {*UniGRPOConfig.__dataclass_fields__, *TASK_KEYS, "world_size", "warmup_ratio"}
    assert {*KEPT, *TOLD, *SILENT} <= known
    assert not {*TOLD} & {*SILENT, *KEPT}


# ---- a used folder ----


@pytest.mark.parametrize("kept", ["checkpoint-1", "model.safetensors", "metrics.jsonl"])
def test_a_used_folder_is_an_error_with_the_choices_before_a_rollout(make_trainer, stored, kept):
    for path in stored.iterdir():
        if path.name not in (kept, RECORD):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = contents(stored)
    choices = "another output_dir, or resume_from_checkpoint=True .* or overwrite=True"
    with pytest.raises(CheckpointError, match=rf"{stored} holds {kept} of an earlier run.*{choices}"):
        again(make_trainer, stored, rewards=never).train()
    assert contents(stored) == before


def test_overwrite_deletes_what_a_run_wrote_and_nothing_that_a_user_put_there(make_trainer, stored):
    old = read_record(stored).run_id
    (stored / "notes.txt").write_text("mine")
    (stored / "my").mkdir()
    with pytest.raises(CheckpointError, match="give one of the two"):
        again(make_trainer, stored, overwrite=True, rewards=never).train(resume_from_checkpoint=True)
    again(make_trainer, stored, overwrite=True, max_steps=1, seed=3).train()
    assert sorted(path.name for path in stored.iterdir()) == [
        "checkpoint-1",
        "metrics.jsonl",
        "my",
        "notes.txt",
        RECORD,
    ]
    assert read_record(stored).run_id != old and "run_id" in json.loads(
        (stored / "metrics.jsonl").read_text().splitlines()[0]
    )


@pytest.mark.parametrize("damage", ["weights changed", "no record"])
def test_overwrite_deletes_nothing_where_something_is_not_the_runs(make_trainer, stored, damage):
    if damage == "no record":
        (stored / RECORD).unlink()
    else:
        (stored / "model.safetensors").write_bytes(b"somebody's own")
    before = contents(stored)
    with pytest.raises(
        CheckpointError, match=r"holds model.safetensors.*which none is known to have written.*Move that away"
    ):
        again(make_trainer, stored, overwrite=True, rewards=never).train()
    assert contents(stored) == before


@pytest.mark.parametrize(("saved", "beside"), [(True, "model.safetensors"), (False, "adapter_model.safetensors")])
def test_a_folder_never_holds_two_kinds_of_weights(make_trainer, tmp_path, saved, beside):
    folder = tmp_path / "weights"
    make_trainer(lora=not saved).save_model(str(folder))
    before = contents(folder)
    with pytest.raises(
        CheckpointError, match=rf"{folder} holds {beside}, and .* is to be saved beside it.*another folder"
    ):
        make_trainer(lora=saved).save_model(str(folder))
    assert contents(folder) == before


# ---- the identity ----


def test_checkpoints_logs_and_the_card_of_an_adapter_bear_the_run(make_trainer, tmp_path):
    out = tmp_path / "run"
    trainer = recorded(make_trainer, out, lora=True, max_steps=1)
    trainer.train()
    trainer.save_model()
    own = read_record(out)
    assert len(own.run_id) == 12 and len(own.fingerprint) == 16 and own.kept["seed"] == 42
    assert read_record(out / "checkpoint-1").identity == own.identity
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines and all(line["run_id"] == own.run_id for line in lines)
    assert ModelCard.load(out / "README.md").data.to_dict()["unigrpo"] == own.identity


def test_digests_are_of_contents_and_not_of_names_or_of_fresh_adapters():
    model = tiny_model()
    assert weights_digest(model) == weights_digest(tiny_model()) != weights_digest(moved_model())
    first, second = adapted(), adapted()
    with torch.no_grad():
        next(own for own in second.parameters() if own.requires_grad).add_(1)
    assert weights_digest(first) == weights_digest(second)
    assert weights_digest(first, trained=True) != weights_digest(second, trained=True)
    rows = prompts(200)
    assert dataset_digest(rows) == dataset_digest(prompts(200)) != dataset_digest([*rows[:-1], rows[0]])


# ---- the reference ----


def test_a_kl_without_reference_log_probabilities_is_an_error(make_trainer, tmp_path):
    """The window was sampled without one; a KL of 0 would be logged, and none applied."""
    out = tmp_path / "run"
    recorded(make_trainer, out, beta=0.0, max_steps=1).train()
    for folder in (out, out / "checkpoint-1"):
        (folder / RECORD).unlink()
    (out / "checkpoint-1" / MANIFEST).unlink()
    seal(out / "checkpoint-1")
    with (
        pytest.warns(UserWarning, match="does not say of which run"),
        pytest.raises(ValueError, match=r"beta=0.5 needs the reference's log-probabilities, and the window has none"),
    ):
        recorded(make_trainer, out, beta=0.5, max_steps=2).train(resume_from_checkpoint=True)
