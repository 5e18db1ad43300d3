"""Folders that are whole or not there: the order of what reaches the disk, rotation, what a dead process leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import ssl
from pathlib import Path

import pytest

from unigrpo.errors import CheckpointError
from unigrpo.training.checkpoints import files as durable
from unigrpo.training.checkpoints.files import (
    MANIFEST,
    aside_of,
    discard,
    fault,
    finish,
    is_disk_fault,
    named,
    publish,
    seal,
    sync_folder,
    write_text,
)
from unigrpo.training.checkpoints.run_folder import (
    check_state,
    checkpoint_folder,
    newest_usable,
    rotate,
    saving_error,
    steps_of,
)


def fill(folder: Path, text: str = "weights") -> Path:
    """A folder with a file below it, as engines with shards write them."""
    (folder / "global_step1").mkdir(parents=True)
    (folder / "model").write_text(text)
    (folder / "global_step1" / "shard").write_text("shard")
    return folder


def checkpoint(run: Path, step: int) -> Path:
    """A whole checkpoint."""
    aside = fill(aside_of(checkpoint_folder(run, step)), f"weights {step}")
    seal(aside)
    publish(aside, checkpoint_folder(run, step))
    aside.parent.rmdir()
    return checkpoint_folder(run, step)


def test_faults_name_files_of_folders_below(tmp_path):
    folder = checkpoint(tmp_path, 1)
    (folder / "global_step1" / "shard").write_text("other")
    assert fault(folder) == "shard is not what was written (its CRC-32 differs)"
    assert fault(folder, contents=False) is None
    (folder / "global_step1" / "shard").unlink()
    (folder / "model").write_text("weights")
    assert fault(folder) == "shard is missing, model has 7 bytes, not 9"
    (folder / "notes.txt").write_text("a reader's own file does no harm")
    assert "notes" not in fault(folder)


def test_large_files_are_known_by_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "HASHED", 8)
    folder = checkpoint(tmp_path, 1)
    assert json.loads((folder / MANIFEST).read_text())["files"]["model"] == {"bytes": 9}
    (folder / "model").write_text("WEIGHTS 1")
    assert fault(folder) is None
    (folder / "model").write_text("weights")
    assert fault(folder) == "model has 7 bytes, not 9"


@pytest.mark.parametrize("manifest", ["", "{", "[]", "{}", '{"files": {"model": 3}}', "\x00" * 40])
def test_a_manifest_that_says_nothing_is_a_fault(tmp_path, manifest):
    folder = checkpoint(tmp_path, 1)
    (folder / MANIFEST).write_text(manifest)
    assert "cannot be read" in fault(folder)


def test_a_folder_that_a_dead_process_left_aside_is_finished_or_cleared(tmp_path):
    old = checkpoint(tmp_path, 1)
    sealed = fill(aside_of(checkpoint_folder(tmp_path, 2)))
    seal(sealed)
    fill(aside_of(checkpoint_folder(tmp_path, 3)))
    again = fill(aside_of(old), "not in place of a whole one")
    seal(again)
    shutil.copytree(old, tmp_path / ".removed-checkpoint-0")
    finish(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    assert fault(tmp_path / "checkpoint-2") is None and (old / "model").read_text() == "weights 1"


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    folder = checkpoint(tmp_path, 1)
    (folder / "model").write_text("torn")
    (folder / "stale").write_text("")
    checkpoint(tmp_path, 1)
    assert fault(folder) is None and not (folder / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_half_deleted_folder_never_bears_its_name(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path, 1)
    deleted = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: deleted.append(Path(path).name))
    discard(folder)
    assert not folder.exists() and deleted[-1] == ".removed-checkpoint-1"


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("steps", "torn", "newest", "best", "limit", "left"),
    [
        ([1, 2, 3, 4], [], 4, None, 2, [4, 3]),
        ([1, 2, 3, 4], [], 4, 1, 2, [4, 1]),
        ([1, 2, 3, 4], [], 4, 1, 1, [4, 1]),
        ([1, 2, 3, 4], [3], 4, None, 2, [4, 2]),
        ([1, 2, 3, 7, 8], [7], 3, None, 3, [3, 2, 1]),
        ([1, 2, 3, 7, 8], [8], 3, None, 4, [7, 3, 2, 1]),
        ([1, 2], [], 2, None, None, [2, 1]),
        ([1, 2], [], 2, None, 5, [2, 1]),
    ],
)
def test_rotation_keeps_the_newest_the_best_and_the_whole_ones(tmp_path, steps, torn, newest, best, limit, left):
    for step in steps:
        checkpoint(tmp_path, step)
    for step in torn:
        (checkpoint_folder(tmp_path, step) / "model").unlink()
    best = None if best is None else str(checkpoint_folder(tmp_path, best))
    rotate(tmp_path, limit, checkpoint_folder(tmp_path, newest), best)
    assert steps_of(tmp_path) == left


@pytest.mark.parametrize("spelling", ["relative", "absolute", "linked"])
def test_the_best_checkpoint_is_kept_however_the_runs_folder_is_spelled(tmp_path, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    for step in (1, 2, 3, 4):
        checkpoint(tmp_path / "run", step)
    Path("link").symlink_to("run")
    runs = {"relative": Path("run"), "absolute": tmp_path / "run", "linked": Path("link")}
    best = "run/checkpoint-1" if spelling == "absolute" else str(tmp_path / "run" / "checkpoint-1")
    rotate(runs[spelling], 2, checkpoint_folder(runs[spelling], 4), best)
    assert steps_of(tmp_path / "run") == [4, 1]


def test_rotation_leaves_the_folders_of_other_programs(tmp_path):
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    fill(checkpoint_folder(tmp_path, 9))
    rotate(tmp_path, 2, checkpoint_folder(tmp_path, 3), None)
    assert steps_of(tmp_path) == [9, 3, 2]


STATES = {
    "plain": ["optimizer.pt", "scheduler.pt"],
    "FSDP": ["optimizer.bin", "scheduler.pt"],
    "FSDP, sharded": ["optimizer_0/.metadata", "scheduler.pt"],
    "DeepSpeed": ["global_step3/mp_rank_00_model_states.pt"],
}


@pytest.mark.parametrize("written", STATES)
@pytest.mark.parametrize("engine", ["plain", "FSDP", "DeepSpeed"])
def test_a_checkpoint_needs_the_optimizer_and_schedule_of_the_engine(tmp_path, engine, written):
    for name in STATES[written]:
        (tmp_path / "checkpoint-3" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkpoint-3" / name).write_text("")
    wrong = check_state(tmp_path / "checkpoint-3", tmp_path, engine)
    if written.startswith(engine):
        assert wrong is None
    else:
        assert f"cannot resume from {tmp_path / 'checkpoint-3'}: it has no " in wrong and f"({engine})" in wrong


def test_the_newest_usable_checkpoint_is_the_one_with_the_highest_step(tmp_path):
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-old").mkdir()
    (tmp_path / "checkpoint-100" / "model").unlink()
    assert newest_usable(tmp_path) == tmp_path / "checkpoint-10"
    assert newest_usable(tmp_path / "checkpoint-9") is None


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_text(path, "old")

    def fail(*_):
        raise OSError("no more")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no more"):
        write_text(path, "new")
    assert path.read_text() == "old" and [own.name for own in tmp_path.iterdir()] == ["summary.json"]


DISKS = [
    *(OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)),
    *(OSError(number, os.strerror(number)) for number in (errno.EROFS, errno.ESTALE, errno.EACCES, errno.ENOENT)),
    Exception("No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    type("SafetensorError", (Exception,), {})("I/O error"),
]
NO_DISKS = [
    ConnectionError("hub"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    TimeoutError("timed out"),
    TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
    OSError("We couldn't connect to 'https://huggingface.co' to load the files"),
    OSError(errno.ENETUNREACH, "Network is unreachable"),
    type("HfHubHTTPError", (OSError,), {})("403 Client Error: Forbidden"),
    ssl.SSLCertVerificationError(1, "certificate verify failed"),
    socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    Exception("error sending request: Connection refused (os error 111)"),
    RuntimeError("shapes differ"),
]


@pytest.mark.parametrize("error", DISKS, ids=repr)
def test_what_a_disk_refuses_is_a_disks_fault(tmp_path, error):
    assert is_disk_fault(error)
    with pytest.raises(CheckpointError, match=r"weights could not be written"), named(tmp_path / "weights"):
        raise error


@pytest.mark.parametrize("error", NO_DISKS, ids=repr)
def test_what_a_network_refuses_stays_itself(tmp_path, error):
    assert not is_disk_fault(error)
    with pytest.raises(type(error)) as caught, named(tmp_path / "weights"):
        raise error
    assert caught.value is error
    assert saving_error(checkpoint_folder(tmp_path, 1), error) is error


def test_windows_which_opens_no_folders_is_not_asked_to(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(PermissionError):
            sync_folder(tmp_path)
        patched.setattr(os, "name", "nt")
        sync_folder(tmp_path)
