"""Two processes in one folder: the second is refused before it touches anything, and a dead one does not bar the way."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from unigrpo.errors import CheckpointError
from unigrpo.training.checkpoints.lock import LOCK, birth_of, locked, this_process

from ..support.saving import SAVING


pytestmark = pytest.mark.smoke


@pytest.fixture(name="other")
def process_at_work(tmp_path):
    """The id of a process that holds ``tmp_path / "run"`` until it is killed."""
    folder = tmp_path / "run"
    folder.mkdir()
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with locked(folder):
                os.write(writer, b"1")
                signal.pause()
        finally:
            os._exit(1)
    os.read(reader, 1)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)


def test_a_second_process_is_told_who_is_at_work_and_since_when(other, tmp_path):
    told = rf"run is in use by process {other} on {os.uname().nodename}, since 20\d\d-\d\d-\d\d .* UTC. Wait for it or stop it"
    with pytest.raises(CheckpointError, match=told), locked(tmp_path / "run"):
        pytest.fail("two processes at work")
    assert (tmp_path / "run" / LOCK).exists()


def test_a_second_process_leaves_the_half_written_checkpoint_of_the_first(other, make_trainer, tmp_path):
    half = tmp_path / "run" / ".incomplete-checkpoint-4" / "checkpoint-4" / "model.safetensors"
    half.parent.mkdir(parents=True)
    half.write_text("half")
    for resume in (None, True):
        with pytest.raises(CheckpointError, match=f"in use by process {other}"):
            make_trainer(**SAVING).train(resume_from_checkpoint=resume)
    assert half.read_text() == "half"


def test_a_killed_process_does_not_bar_the_way(other, tmp_path):
    """Also while nobody has asked for its exit status."""
    os.kill(other, signal.SIGKILL)
    os.waitid(os.P_PID, other, os.WEXITED | os.WNOWAIT)
    with locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run" / LOCK).exists()


def written(folder: Path, holder) -> Path:
    path = folder / LOCK
    path.write_text(json.dumps({name: getattr(holder, name) for name in ("host", "pid", "birth", "since")}))
    return path


def test_a_number_that_another_process_has_by_now_does_not_bar_the_way(tmp_path):
    parent = replace(this_process(), pid=os.getppid())
    alive = written(tmp_path, replace(parent, birth=birth_of(os.getppid())))
    with pytest.raises(CheckpointError, match=f"process {os.getppid()} "), locked(tmp_path):
        pytest.fail("two processes at work")
    written(tmp_path, replace(parent, birth="another start"))
    with locked(tmp_path):
        assert json.loads(alive.read_text())["pid"] == os.getpid()


def test_of_another_machine_the_file_to_delete_is_told(tmp_path):
    path = written(tmp_path, replace(this_process(), host="elsewhere", birth="another start"))
    with (
        pytest.raises(CheckpointError, match=rf"on elsewhere, since .*another machine.* delete {path}"),
        locked(tmp_path),
    ):
        pytest.fail("two processes at work")
    path.write_text("{")
    with (
        pytest.raises(CheckpointError, match=rf"{path} should say .* cannot be read .*delete this file"),
        locked(tmp_path),
    ):
        pytest.fail("a file that nobody understands was ignored")


def test_the_lock_is_held_through_nested_blocks_and_goes_with_the_outermost(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        with locked(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
        raise KeyError
    assert not (tmp_path / LOCK).exists()


def test_a_run_holds_its_folder_from_the_start_to_the_end_also_of_a_failed_one(make_trainer, tmp_path):
    seen = []

    def reward(completions, **_):
        seen.append((tmp_path / "run" / LOCK).exists())
        if len(seen) == 2:
            raise ValueError("no score")
        return [float(place) for place in range(len(completions))]

    make_trainer(rewards=reward, max_steps=1).train()
    assert seen == [True] and not (tmp_path / "run" / LOCK).exists()
    with pytest.raises(ValueError, match="no score"):
        make_trainer(rewards=reward, max_steps=1).train()
    assert seen == [True, True] and not (tmp_path / "run" / LOCK).exists()
