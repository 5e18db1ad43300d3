"""A run that saves after every step, to be damaged and resumed, and fixtures with a finished one."""

from __future__ import annotations

from pathlib import Path

import pytest

from unigrpo.training.callbacks import JsonLines
from unigrpo.training.checkpoints.files import MANIFEST, seal
from unigrpo.training.checkpoints.run_record import RECORD

from .crashing import metrics


SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6}


@pytest.fixture(scope="module", name="whole_folder")
def folder_of_a_module(tmp_path_factory):
    """Where a finished run lies, with all its checkpoints."""
    return tmp_path_factory.mktemp("whole")


def recorded(make_trainer, out: Path, **changes):
    """A trainer of the run whose metrics are kept in ``out``."""
    settings = {**SAVING, "output_dir": str(out), "callbacks": [JsonLines(out / "metrics.jsonl")]}
    return make_trainer(**{**settings, **changes})


@pytest.fixture(name="finished")
def finished_run(make_trainer, whole_folder):
    """Its folder; the module's tests share it and leave it alone."""
    if not (whole_folder / "checkpoint-6").exists():
        recorded(make_trainer, whole_folder).train()
    return whole_folder


def logged(out: Path) -> list[dict]:
    """The lines of every step, without the totals at the end."""
    return [line for line in metrics(out) if "loss" in line]


def without_identity(checkpoint: Path) -> None:
    """Leaves a checkpoint as earlier versions wrote it: whole, and of no run that it knows."""
    for name in (RECORD, MANIFEST):
        (checkpoint / name).unlink()
    seal(checkpoint)
