"""Files of DeepSpeed's in a checkpoint are looked through before DeepSpeed unpickles them."""

from __future__ import annotations

import importlib.util
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from unigrpo.training.checkpoints.deepspeed_files import refuse_code

from ..support import hostile
from ..support.engines import make, on_processors
from ..support.processes import played


STATES = "mp_rank_00_model_states.pt"
NEEDS_DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason='needs DeepSpeed: pip install -e ".[deepspeed]"'
)


@pytest.fixture
def step(tmp_path) -> Path:
    """DeepSpeed's folder in a checkpoint that names it."""
    folder = tmp_path / "checkpoint-1" / "global_step1"
    folder.mkdir(parents=True)
    folder.with_name("latest").write_text("global_step1")
    return folder


def harmless() -> dict:
    return {
        "module": OrderedDict(weight=torch.ones(2, dtype=torch.bfloat16)),
        "shapes": [torch.Size([2])],
        "lr_scheduler": {"last_epoch": 1},
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", [STATES, f"zero/layer/{STATES}", "states.PTH", "states.bin"])
def test_code_is_refused_and_not_run(step, mark, place, zipped):
    file = step / place
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(harmless(), step / "good.pt", _use_new_zipfile_serialization=zipped)
    refuse_code(step.parent)
    torch.save({**harmless(), "trap": hostile.Trap(mark)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"{file.name}.*could run code.*start a new run.*mkdir"):
        refuse_code(step.parent)


def test_what_is_no_torch_file_is_refused(step, mark):
    script = torch.jit.script(torch.nn.ReLU())
    for write in (
        lambda file: hostile.trapped(file, mark, plain=True),
        lambda file: file.write_bytes(pickle.dumps({"a": 1}, protocol=4)),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"PK\x03\x04 and nothing"),
        lambda file: torch.jit.save(script, str(file)),
    ):
        write(step / STATES)
        with pytest.raises(ValueError, match=STATES):
            refuse_code(step.parent)


@pytest.mark.parametrize("name", ["latest", "latest_universal"])
@pytest.mark.parametrize("tag", ["..", ".", "../elsewhere", "/elsewhere", "a/b", "", "a\0b"])
def test_a_tag_that_leads_out_of_the_checkpoint_is_refused(step, name, tag):
    step.with_name(name).write_text(tag)
    with pytest.raises(ValueError, match=name):
        refuse_code(step.parent)


def test_folders_behind_links_are_looked_through(step, tmp_path, mark):
    (tmp_path / "elsewhere").mkdir()
    hostile.trapped(tmp_path / "elsewhere" / STATES, mark)
    os.symlink(step.parent, step / "circle")
    refuse_code(step.parent)
    step.rmdir() if not any(step.iterdir()) else (step / "circle").unlink()
    os.symlink(tmp_path / "elsewhere", step / "linked")
    with pytest.raises(ValueError, match="could run code"):
        refuse_code(step.parent)


def test_what_only_transformers_reads_is_left_to_it(step, mark):
    hostile.trapped(step.parent / "training_args.bin", mark)
    refuse_code(step.parent)
    assert not mark.exists(), "and it is not opened here either"


def trapped_resume(rank: int, stage: str, folder: str, mark: str) -> dict[str, str]:
    """What resuming a checkpoint says in whose files of DeepSpeed's a trap was laid; before that, nothing."""
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "output_dir": folder}
    with on_processors(stage):
        make(stage, **saving).train()
    checkpoint = Path(folder, "checkpoint-1")
    refuse_code(checkpoint)

    def lay() -> None:
        for file in checkpoint.glob("global_step*/*_states.pt"):
            states = torch.load(file, weights_only=False)
            torch.save({**states, "trap": hostile.Trap(Path(mark))}, file)

    hostile.reseal(checkpoint, lay)
    with on_processors(stage):
        try:
            make(stage, **saving).train(resume_from_checkpoint=str(checkpoint))
        except ValueError as error:
            return {"error": str(error)}
    return {"error": ""}


@NEEDS_DEEPSPEED
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_resumed_run_of_deepspeeds_unpickles_no_code(tmp_path, mark, monkeypatch, stage):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    arguments = {"stage": stage, "folder": str(tmp_path / "run"), "mark": str(mark)}
    ((own,),) = played(1, tmp_path, __name__, ("trapped_resume", arguments))
    assert "could run code" in own["error"] and not mark.exists()


@NEEDS_DEEPSPEED
def test_the_objects_of_deepspeeds_own_checkpoints_are_let_through(step, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    objects = [
        LossScaler(1.0),
        DynamicLossScaler(2.0, 10, 1.0, 1, False),
        ZeroStageEnum(2),
        fragment_address(numel=1, start=0),
    ]
    torch.save({**harmless(), "objects": objects}, step / STATES)
    refuse_code(step.parent)
    torch.save({**harmless(), "objects": [*objects, Path("elsewhere")]}, step / STATES)
    with pytest.raises(ValueError, match="could run code"):
        refuse_code(step.parent)
