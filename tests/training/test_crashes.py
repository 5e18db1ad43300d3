"""Runs that die at any moment, or find damaged checkpoints: they go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unigrpo.errors import CheckpointError, NonFiniteError
from unigrpo.runs.cli import main
from unigrpo.runs.held_out import load_before
from unigrpo.training.checkpoints.files import MANIFEST, fault
from unigrpo.training.checkpoints.run_folder import newest_usable
from unigrpo.training.checkpoints.run_record import RECORD

from ..support import ROOT
from ..support.crashing import metrics
from ..support.runs import diverging
from ..support.saving import finished_run, folder_of_a_module, logged, recorded  # noqa: F401


# ---- kills ----


def crash(folder: Path, *arguments: str) -> str:
    """What ``tests.support.crashing`` prints when the run survived."""
    command = [sys.executable, "-m", "tests.support.crashing", str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=580)
    assert done.returncode == 0, done.stderr + "".join(path.read_text()[-3000:] for path in folder.glob("killed.log"))
    print(done.stdout)
    return done.stdout


@pytest.mark.processes
def test_a_run_survives_a_kill_in_a_rollout_and_one_inside_a_checkpoint(tmp_path):
    told = crash(tmp_path, "--kind", "lora", "--steps", "6", "--at", "write:70", "rollout:20")
    assert "crashes: 2 kills survived (rollout 1, reward 0, update 0, log 0, start 0, checkpoint 1)" in told


@pytest.mark.processes
def test_a_run_on_given_answers_survives_five_kills_in_a_row(tmp_path):
    """Of the command itself: in a backward pass, a log, and twice inside a checkpoint; at random points of each."""
    told = crash(tmp_path, "--kind", "sft", "--steps", "12", "--kills", "5", "--seed", "1")
    assert re.search(r"crashes: 5 kills survived \(.* update [1-9], log [1-9], .*checkpoint 3\)", told)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_survives_twenty_kills_in_a_row(tmp_path, kind):
    told = crash(tmp_path, "--kind", kind, "--kills", "20", "--seed", "1")
    assert "crashes: 20 kills survived" in told
    assert all(
        int(count) > 0 for count in re.search(r"rollout (\d+), reward (\d+), update (\d+), log (\d+)", told).groups()
    )
    assert all(f"'{stage}'" in told for stage in ("write", "manifest", "publish", "rotate"))


# ---- damage ----


def copied(finished: Path, tmp_path: Path) -> Path:
    """The run as it was after step 5, which will be damaged."""
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "checkpoint-6")
    return out


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json"]
FILES += ["rollout_window_0.safetensors", "training_args.bin", MANIFEST]


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_with_a_truncated_or_missing_file_is_found(finished, tmp_path, name):
    out = copied(finished, tmp_path)
    path = out / "checkpoint-5" / name
    os.truncate(path, path.stat().st_size - 1 if name != MANIFEST else 100)
    assert (name in fault(path.parent)) if name != MANIFEST else ("cannot be read" in fault(path.parent))
    assert newest_usable(out) == out / "checkpoint-4"
    path.unlink()
    assert f"{name} is missing" in fault(path.parent) or f"has no {name}" in fault(path.parent)


def flip(path: Path) -> None:
    """One bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped", "no manifest"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(make_trainer, finished, tmp_path, damage):
    out = copied(finished, tmp_path)
    last = out / "checkpoint-5"
    if damage == "truncated":
        os.truncate(last / "optimizer.pt", 1000)
    elif damage == "missing":
        (last / "scheduler.pt").unlink()
    elif damage == "flipped":
        flip(last / "rollout_window_0.safetensors")
    else:
        (last / MANIFEST).unlink()
    reasons = {
        "truncated": "optimizer.pt has 1000 bytes, not",
        "missing": "scheduler.pt is missing",
        "flipped": "rollout_window_0.safetensors is not what was written",
        "no manifest": "its writing was cut short",
    }
    with pytest.warns(UserWarning, match=f"checkpoint-5 is skipped: .*{reasons[damage]}"):
        again = recorded(make_trainer, out)
        again.train(resume_from_checkpoint=True)
    assert logged(out) == logged(finished)
    assert (out / "checkpoint-6" / "model.safetensors").read_bytes() == (
        finished / "checkpoint-6" / "model.safetensors"
    ).read_bytes()
    assert all(fault(out / f"checkpoint-{step}") is None for step in range(1, 7))


def test_a_damaged_checkpoint_that_was_named_is_an_error_with_the_newest_usable_one(make_trainer, finished, tmp_path):
    out = copied(finished, tmp_path)
    flip(out / "checkpoint-5" / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"checkpoint-5: model.safetensors is not what.*Resume from .*checkpoint-4"
    ):
        recorded(make_trainer, out).train(resume_from_checkpoint=str(out / "checkpoint-5"))
    with pytest.raises(CheckpointError, match=r"nowhere: it does not exist. Resume from .*checkpoint-4"):
        recorded(make_trainer, out).train(resume_from_checkpoint=str(tmp_path / "nowhere"))


# ---- starting the same command again ----


def test_a_run_with_damaged_checkpoints_alone_is_left_as_it_is(make_trainer, finished, tmp_path):
    """Nobody's work is deleted by starting over: what is wrong with each, and the cure, are told instead."""
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    for step in (1, 2, 3, 6):
        shutil.rmtree(out / f"checkpoint-{step}")
    (out / "checkpoint-5" / MANIFEST).unlink()
    flip(out / "checkpoint-4" / "model.safetensors")
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))
    with pytest.raises(CheckpointError) as caught:
        recorded(make_trainer, out, save_total_limit=1).train(resume_from_checkpoint=True)
    told = str(caught.value)
    assert f"{out / 'checkpoint-5'}: it has no {MANIFEST}" in told
    assert f"{out / 'checkpoint-4'}: model.safetensors is not what was written" in told
    assert "move these folders away or set another output_dir" in told
    assert sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*")) == before


def test_one_machine_without_a_checkpoint_of_its_own_does_not_start_the_others_over(
    make_trainer, finished, tmp_path, monkeypatch
):
    """With save_on_each_node each has its folder."""
    out = copied(finished, tmp_path)
    monkeypatch.setattr(
        "unigrpo.training.checkpoints.saving.gather_object", lambda own: [*own, {} if own != [None] else None]
    )
    with pytest.raises(CheckpointError, match=r"checkpoint-5: it does not exist; .* and 2 more"):
        recorded(make_trainer, out).train(resume_from_checkpoint=True)


def test_what_a_killed_run_left_aside_is_cleared(make_trainer, tmp_path):
    """Also where it was written by more ranks, whose windows nobody writes again."""
    out = tmp_path / "run"
    for step in (1, 9):
        stale = out / f".incomplete-checkpoint-{step}" / f"checkpoint-{step}" / "rollout_window_7.safetensors"
        stale.parent.mkdir(parents=True)
        stale.write_bytes(b"stale")
    (out / ".removed-checkpoint-0").mkdir()
    recorded(make_trainer, out, max_steps=1).train(resume_from_checkpoint=True)
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-1", "metrics.jsonl", RECORD]
    assert not (out / "checkpoint-1" / "rollout_window_7.safetensors").exists()


def test_resuming_a_finished_run_trains_nothing(make_trainer, finished, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("checkpoint-*")}
    trainer = recorded(make_trainer, out)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    assert {path: path.stat().st_mtime_ns for path in out.glob("checkpoint-*")} == before
    assert metrics(out) == [
        {**line, **({"train_loss": 0.0} if "train_loss" in line else {})} for line in metrics(finished)
    ]


def test_metrics_between_two_logs_survive(make_trainer, tmp_path):
    logs = {"logging_steps": 3}
    recorded(make_trainer, tmp_path / "run", **logs).train()
    for step in (2, 4):
        out = tmp_path / f"again-{step}"
        recorded(make_trainer, out, **logs).train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        lines = [line for line in metrics(tmp_path / "run") if line["step"] > step]
        assert metrics(out)[:-1] == lines[:-1] and len(lines) == {2: 3, 4: 2}[step]


def test_what_a_bad_step_collected_is_not_in_the_checkpoint_before_it(make_trainer, tmp_path):
    logs = {"logging_steps": 4, "save_strategy": "no"}
    whole, out = tmp_path / "whole", tmp_path / "run"
    recorded(make_trainer, whole, **logs).train()
    with pytest.raises(NonFiniteError):
        diverging(recorded(make_trainer, out, **logs), 2, "gradient").train()
    recorded(make_trainer, out, **logs).train(resume_from_checkpoint=True)
    assert metrics(out)[:1] == metrics(whole)[:1] and "loss" in metrics(out)[0]


def test_a_line_of_metrics_that_was_cut_short_does_no_harm(make_trainer, finished, tmp_path):
    out = copied(finished, tmp_path)
    path = out / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join(lines[:5]) + b"\n" + lines[5][:40] + "é".encode()[:1])
    recorded(make_trainer, out).train(resume_from_checkpoint=True)
    assert logged(out) == logged(finished)


@pytest.mark.processes
def test_a_recipe_goes_on_with_the_same_command(tmp_path):
    """Also where the first measurement is lost, and where all but the summary was done."""

    def go(out: Path) -> dict:
        small = ["max_steps=3", "per_device_train_batch_size=16", "num_generations=4", "num_iterations=1", "steps=4"]
        small += ["save_strategy=steps", "save_steps=1", "logging_steps=1", "eval_datasets.0.limit=8"]
        small += [
            "resume_from_checkpoint=true",
            f"output_dir={out}",
            "disable_tqdm=true",
            "lora.r=4",
            "lora.lora_dropout=0.1",
        ]
        assert main(["train", "recipes/quickstart.yaml", *small]) == 0
        summary = json.loads((out / "summary.json").read_text())
        return {name: value for name, value in summary.items() if name.startswith(("held_out", "gain", "optimizer"))}

    with pytest.warns(UserWarning, match="starts from the beginning"):
        expected = go(tmp_path / "whole")
    out = tmp_path / "out"
    shutil.copytree(tmp_path / "whole", out)
    for step in (2, 3):
        shutil.rmtree(out / f"checkpoint-{step}")
    (out / "summary.json").unlink()
    assert go(out) == expected
    assert go(out) == expected
    for step in (1, 2, 3):
        shutil.rmtree(out / f"checkpoint-{step}")
    (out / "before.json").write_text((out / "before.json").read_text()[:50])
    assert load_before(out) is None
    assert go(out) == expected, "measured again at the start"
    (out / "before.json").unlink()
    assert go(out) == {"optimizer_steps": 3}, "the start is gone: nothing to compare with"
    assert metrics(out)[:3] == metrics(tmp_path / "whole")[:3]
