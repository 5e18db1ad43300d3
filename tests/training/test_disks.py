"""Disks that are full, cannot be written to or refuse a file: a clear error, and the last checkpoint is there."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback

from unigrpo.errors import CheckpointError, NonFiniteError
from unigrpo.runs.check import check_recipe
from unigrpo.runs.recipe import load_recipe
from unigrpo.training.callbacks import JsonLines
from unigrpo.training.checkpoints.files import MANIFEST, fault, space_left
from unigrpo.training.checkpoints.run_folder import newest_usable, steps_of
from unigrpo.training.checkpoints.run_record import RECORD

from ..support import ROOT
from ..support.runs import diverging
from ..support.saving import SAVING, finished_run, folder_of_a_module, logged, recorded  # noqa: F401


class Limit(TrainerCallback):
    """From the end of ``step`` on no file may grow beyond ``size`` bytes."""

    def __init__(self, step: int, size: int) -> None:
        self.step, self.size, self.soft = step, size, resource.getrlimit(resource.RLIMIT_FSIZE)[0]

    def set(self, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            self.set(self.size)


@pytest.mark.parametrize(
    ("size", "what"), [(200_000, "File too large|os error 27"), (800_000, "PytorchStreamWriter|inline_container")]
)
def test_a_file_that_the_system_refuses_leaves_the_last_checkpoint(make_trainer, finished, tmp_path, size, what):
    """The first size stops the model, the second the optimizer."""
    out = tmp_path / "run"
    limit = Limit(3, size)
    try:
        with pytest.raises(
            CheckpointError, match=rf"(?s)checkpoint-3 could not be written, the disk does not take it .*({what})"
        ) as caught:
            recorded(make_trainer, out, callbacks=[JsonLines(out / "metrics.jsonl"), limit]).train()
    finally:
        limit.set(limit.soft)
    assert f"The last usable checkpoint is {out / 'checkpoint-2'}" in str(caught.value)
    assert re.search(r"bytes of it were written, [\d,]+ bytes are free, checkpoint-2 takes [\d,]+", str(caught.value))
    assert_goes_on(make_trainer, out, finished)


def assert_goes_on(make_trainer, out: Path, finished: Path) -> None:
    """And the run continues from there."""
    assert_left_whole(out)
    recorded(make_trainer, out).train(resume_from_checkpoint=True)
    assert logged(out) == logged(finished)


def assert_left_whole(out: Path) -> None:
    """Nothing is left of checkpoint 3, and the one before it is whole: any of these is resumed alike."""
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["checkpoint-1", "checkpoint-2"]
    assert newest_usable(out) == out / "checkpoint-2"


FAULTS = {
    "model": "transformers.Trainer.save_model",
    "optimizer": "transformers.Trainer._save_optimizer_and_scheduler",
    "random state": "transformers.Trainer._save_rng_state",
    "window": "unigrpo.training.checkpoints.window_checkpoints.save_window",
    "to disk": "unigrpo.training.checkpoints.saving.sync_tree",
    "manifest": "unigrpo.training.checkpoints.files.write_json",
    "rename": "os.rename",
}


class Full(TrainerCallback):
    """The disk is full from the end of step 3 on: ``what`` fails."""

    def __init__(self, monkeypatch, what: str) -> None:
        self.monkeypatch, self.what = monkeypatch, what

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == 3:
            self.monkeypatch.setattr(self.what, no_space)


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", FAULTS)
def test_a_full_disk_at_any_file_leaves_the_last_checkpoint(make_trainer, finished, tmp_path, monkeypatch, what):
    out = tmp_path / "run"
    callbacks = [JsonLines(out / "metrics.jsonl"), Full(monkeypatch, FAULTS[what])]
    with pytest.raises(
        CheckpointError, match=r"checkpoint-3 could not be written, .*OSError: \[Errno 28\] No space left"
    ):
        recorded(make_trainer, out, callbacks=callbacks).train()
    monkeypatch.undo()
    if what in ("window", "rename"):
        return assert_goes_on(make_trainer, out, finished)
    assert_left_whole(out)


def test_older_checkpoints_are_deleted_only_when_the_new_one_stands(make_trainer, tmp_path, monkeypatch):
    """The rename, which is the last thing that can fail, fails."""
    out = tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"The last usable checkpoint is .*checkpoint-2"):
        recorded(make_trainer, out, callbacks=[Full(monkeypatch, FAULTS["rename"])], save_total_limit=1).train()
    assert steps_of(out) == [2] and fault(out / "checkpoint-2") is None


def test_a_disk_that_is_really_full(make_trainer, finished, tmp_path):
    """A file system with room for two checkpoints and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    one = sum(path.stat().st_size for path in (finished / "checkpoint-1").iterdir())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(2.5 * one)}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        with pytest.raises(
            CheckpointError,
            match=r"(?s)checkpoint-3 could not be written, .*(No space left|inline_container|failed writing).* 0 bytes are free",
        ):
            recorded(make_trainer, disk).train()
        subprocess.run(["mount", "-o", f"remount,size={20 * one}", str(disk)], check=True)
        assert_goes_on(make_trainer, disk, finished)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_metrics_that_the_disk_does_not_take_are_a_clear_error(make_trainer, tmp_path, monkeypatch):
    out = tmp_path / "run"
    trainer = recorded(make_trainer, out)

    def full(*args):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("unigrpo.training.callbacks.append_line", full)
    with pytest.raises(
        CheckpointError, match=r"metrics.jsonl could not be written, .*OSError: .*quota exceeded.*start the same"
    ):
        trainer.train()


class Gone(TrainerCallback):
    """After step 2 the run's folder is not there any more, or a file is in its place."""

    def __init__(self, out: Path, replaced: bool) -> None:
        self.out, self.replaced = out, replaced

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == 2:
            self.out.rename(self.out.with_name("elsewhere"))
            if self.replaced:
                self.out.write_text("")


@pytest.mark.parametrize("replaced", [False, True], ids=["renamed", "replaced by a file"])
def test_a_folder_that_goes_away_in_the_middle_is_said_to_be_gone(make_trainer, tmp_path, replaced):
    out = tmp_path / "run"
    trainer = recorded(make_trainer, out, callbacks=[JsonLines(out / "metrics.jsonl"), Gone(out, replaced)])
    with pytest.raises(CheckpointError, match=r"metrics.jsonl could not be written: .*removed, renamed or replaced"):
        trainer.train()
    assert newest_usable(tmp_path / "elsewhere") == tmp_path / "elsewhere" / "checkpoint-1"


def test_what_is_free_says_when_it_is_inodes_that_are_missing(tmp_path, monkeypatch):
    assert re.fullmatch(r"[\d,]+ bytes are free", space_left(tmp_path / "new"))
    monkeypatch.setattr(
        "os.statvfs", lambda _: SimpleNamespace(f_files=4, f_favail=0, f_bavail=1, f_blocks=1, f_frsize=1, f_bfree=1)
    )
    assert space_left(tmp_path).endswith("and no inode for one more file: delete some")


@pytest.mark.parametrize("error", [KeyError("missing"), ConnectionResetError(errno.ECONNRESET, "Connection reset")])
def test_an_error_that_is_no_disks_stays_itself_and_leaves_nothing(make_trainer, tmp_path, monkeypatch, error):
    def fails(*args):
        raise error

    trainer = recorded(make_trainer, tmp_path / "run")
    monkeypatch.setattr("unigrpo.training.checkpoints.window_checkpoints.save_window", fails)
    with pytest.raises(type(error), match=r"missing|reset"):
        trainer.train()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.jsonl", RECORD]


def test_a_bad_step_on_a_full_disk_tells_of_both(make_trainer, monkeypatch):
    trainer = diverging(make_trainer(), 1, "loss")
    monkeypatch.setattr("unigrpo.training.checkpoints.window_checkpoints.save_window", no_space)
    with pytest.raises(
        NonFiniteError, match=r"step 2 is not finite.*checkpoint-1 could not be written.*No space left"
    ):
        trainer.train()


def test_an_impossible_output_folder_is_found_before_anything_runs(make_trainer, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(CheckpointError, match=rf"nothing can be written into output_dir='{path}'.*Set output_dir"):
            make_trainer(output_dir=str(path))
    trainer = make_trainer(rewards=lambda **_: pytest.fail("a rollout was made"))
    shutil.rmtree(trainer.args.output_dir)
    Path(trainer.args.output_dir).write_text("")
    with pytest.raises(CheckpointError, match="nothing can be written"):
        trainer.train()


# ---- what callers find ----


def test_every_file_of_a_checkpoint_is_on_disk_before_it_has_its_name(make_trainer, monkeypatch):
    happened = []
    real_sync, real_rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda file: happened.append(os.readlink(f"/proc/self/fd/{file}")) or real_sync(file)
    )
    monkeypatch.setattr(os, "rename", lambda old, new: happened.append((str(old), str(new))) or real_rename(old, new))
    trainer = make_trainer(**{**SAVING, "max_steps": 1})
    trainer.train()
    aside, folder = next(event for event in happened if isinstance(event, tuple))
    before = happened[: happened.index((aside, folder))]
    assert folder == f"{trainer.args.output_dir}/checkpoint-1" and not aside.startswith(folder)
    names = {path.name for path in Path(folder).iterdir()} - {MANIFEST}
    assert len(names) > 8 and all(f"{aside}/{name}" in before for name in names)
    manifest = before.index(f"{aside}/.{MANIFEST}.new")
    assert manifest > max(before.index(f"{aside}/{name}") for name in names)
    assert happened[happened.index((aside, folder)) + 1] == trainer.args.output_dir


def test_callbacks_and_uploads_find_the_finished_checkpoint(make_trainer, tmp_path, monkeypatch):
    seen = []

    class Look(TrainerCallback):
        def on_save(self, args, state, control, **kwargs) -> None:
            seen.append(fault(Path(args.output_dir) / f"checkpoint-{state.global_step}"))

    trainer = make_trainer(callbacks=[Look()], **{**SAVING, "max_steps": 2})
    pushed = []
    monkeypatch.setattr(
        "transformers.Trainer._push_from_checkpoint", lambda self, folder: pushed.append((folder, fault(Path(folder))))
    )
    trainer.args.push_to_hub = True
    trainer._finish_current_push = lambda: None
    trainer.train()
    assert seen == [None, None]
    assert pushed == [(f"{trainer.args.output_dir}/checkpoint-{step}", None) for step in (1, 2)]


def test_the_best_checkpoint_is_known_by_its_final_name_and_kept(make_trainer, tmp_path, monkeypatch):
    """Also by a run that goes on from another working directory."""
    rewards = iter([0.1, 0.9, 0.5, 0.3, 0.2, 0.1])

    class Best(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            control.should_evaluate = True

    trainer = make_trainer(
        callbacks=[Best()], metric_for_best_model="eval_reward", greater_is_better=True, save_total_limit=2, **SAVING
    )
    trainer._evaluate = lambda *args, **kwargs: {"eval_reward": next(rewards, 0.0)}
    trainer.train()
    best = str(tmp_path / "run" / "checkpoint-2")
    assert trainer.state.best_model_checkpoint == best
    assert steps_of(tmp_path / "run") == [6, 2]
    for step in (2, 6):
        state = json.loads((tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == best
    monkeypatch.chdir(tmp_path)
    again = make_trainer(
        output_dir="run",
        metric_for_best_model="eval_reward",
        greater_is_better=True,
        save_total_limit=2,
        **{**SAVING, "max_steps": 8},
    )
    again.train(resume_from_checkpoint=True)
    assert again.state.best_model_checkpoint == best and steps_of(tmp_path / "run") == [8, 2]


def test_check_finds_a_folder_that_a_run_could_not_write(tmp_path):
    """And makes none while it looks."""
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "runs" / "x", Path("/proc/nope/runs/x")):
        with pytest.raises(
            CheckpointError, match=rf"nothing can be written into output_dir='{folder}': .*Set output_dir"
        ):
            check_recipe(load_recipe(recipe, [f"output_dir={folder}"]), offline=True)
    check_recipe(load_recipe(recipe, [f"output_dir={tmp_path / 'new' / 'run'}"]), offline=True)
    assert not (tmp_path / "new").exists()
