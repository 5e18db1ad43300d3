"""Commands typed twice: nothing of the first run is lost."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from unigrpo.errors import CheckpointError
from unigrpo.runs.cli import main
from unigrpo.training.checkpoints.lock import LOCK, locked
from unigrpo.training.checkpoints.run_record import RECORD, read_record
from unigrpo.training.checkpoints.used_folder import take_free_folder


SMALL = ["max_steps=1", "per_device_train_batch_size=8", "num_iterations=1", "steps=4", "eval_datasets.0.limit=2"]
SMALL += ["disable_tqdm=true", "logging_steps=1", "datasets.0.limit=8"]


def train(out: Path, *words: str) -> int:
    return main(["train", "quickstart", *SMALL, f"output_dir={out}", *words])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_command_typed_twice_takes_the_next_free_name_and_says_so(tmp_path, capsys):
    """An adapter after a whole model, too: each has a folder of its own, and replaces the other only where it was asked to."""
    out = tmp_path / "run"
    assert train(out) == 0
    first = contents(out)
    assert train(out, "lora.r=2", "seed=7") == 0
    told = rf"{out} holds a run \(model.safetensors, metrics.jsonl, summary.json .*\): this run goes to {out}-2 \(resume_from"
    assert re.search(told, capsys.readouterr().out)
    assert contents(out) == first
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (out, Path(f"{out}-2"))]
    assert [own["seed"] for own in summaries] == [0, 7] and summaries[0]["run_id"] != summaries[1]["run_id"]
    assert all(own["fingerprint"] for own in summaries) and read_record(out).about["recipe"] == "quickstart"
    assert train(out, "lora.r=2", "overwrite=true") == 0
    assert (out / "adapter_model.safetensors").exists() and not (out / "model.safetensors").exists()
    assert not Path(f"{out}-3").exists() and not (out / LOCK).exists()


def test_a_free_name_is_one_that_no_run_has_used_or_uses(tmp_path):
    asked = tmp_path / "run"
    for folder, name in ((asked, "summary.json"), (tmp_path / "run-2", "adapter_model.bin")):
        folder.mkdir()
        (folder / name).write_text("{}")
    (tmp_path / "run-4").mkdir()
    (tmp_path / "run-4" / RECORD).write_text("{}")
    with ExitStack() as first, ExitStack() as second:
        assert take_free_folder(asked, first) == (tmp_path / "run-3", f"{asked} holds a run (summary.json)")
        assert (tmp_path / "run-3" / LOCK).exists()
        (tmp_path / "run-3" / "metrics.jsonl").write_text("{}\n")
        assert take_free_folder(asked, second)[0] == tmp_path / "run-4", "a start that came to nothing"
    assert not list(tmp_path.glob(f"*/{LOCK}"))


@pytest.mark.parametrize("name", [".", ".."])
def test_a_folder_whose_name_cannot_be_counted_on_is_an_error(tmp_path, monkeypatch, name):
    (tmp_path / "below").mkdir()
    for folder in (tmp_path, tmp_path / "below"):
        (folder / "summary.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "below")
    with ExitStack() as lock, pytest.raises(CheckpointError, match="no successor: set another output_dir"):
        take_free_folder(Path(name), lock)


def test_a_name_that_can_grow_no_longer_is_an_error(tmp_path):
    (tmp_path / ("x" * 254) / "checkpoint-1").mkdir(parents=True)
    (tmp_path / ("x" * 254) / "checkpoint-1" / "file").touch()
    with (
        ExitStack() as lock,
        pytest.raises(CheckpointError, match=r"holds a run .*next name cannot be made .*too long"),
    ):
        take_free_folder(tmp_path / ("x" * 254), lock)


def test_a_folder_in_use_is_not_free(tmp_path, monkeypatch):
    monkeypatch.setattr("unigrpo.training.checkpoints.lock.socket.gethostname", lambda: "elsewhere")
    with ExitStack() as other:
        (tmp_path / "run").mkdir()
        other.enter_context(locked(tmp_path / "run"))
        monkeypatch.undo()
        with ExitStack() as lock:
            folder, reason = take_free_folder(tmp_path / "run", lock)
            assert folder == tmp_path / "run-2" and "in use by process" in reason and "elsewhere" in reason
