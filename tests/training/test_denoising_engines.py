"""Fine-tuning on several processes is fine-tuning on one, under DDP, FSDP2 and DeepSpeed; and a run that is killed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from ..support.divisions import distance
from ..support.engines import ENGINES, NEEDS_FSDP2
from ..support.given_runs import divided_run
from ..support.processes import played


pytestmark = pytest.mark.processes
NEEDS_DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason='needs DeepSpeed: pip install -e ".[deepspeed]"'
)
ZERO = [pytest.param(stage, marks=NEEDS_DEEPSPEED) for stage in ("zero2", "zero3")]
KINDS = {"ddp": ("MULTI_CPU", 2), "fsdp2": ("FSDP2", 2), "zero2": ("DEEPSPEED", 2), "zero3": ("DEEPSPEED", 2)}


def assert_same(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """Sums in another order through three steps of Adam."""
    for own in ranks:
        assert distance(own["weights"], alone["weights"]) < 1e-4
        assert own["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert own["held_out"] == pytest.approx(alone["held_out"], rel=1e-4)


def runs(folder: Path, processes: int, engine: str, *divisions: tuple[int, int], lora: bool = False):
    """Each division, (micro-batch, accumulation), as all processes saw it."""
    scenes = [
        (
            "divided_run",
            {"folder": str(folder / f"{b}x{a}"), "batch": b, "accumulation": a, "engine": engine, "lora": lora},
        )
        for b, a in divisions
    ]
    return played(processes, folder / "scenes", "tests.support.given_runs", *scenes)


@pytest.mark.parametrize("engine", [*ENGINES, *ZERO])
def test_processes_change_nothing(tmp_path, monkeypatch, engine):
    """Rows of four tasks and of several lengths, so that processes have unequal numbers of units."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    alone = divided_run(0, str(tmp_path / "alone"), 8, 1)
    for ranks in runs(tmp_path, 2, engine, (4, 1), (2, 2)):
        assert_same(ranks, alone)
        assert [(own["engine"]["kind"], own["engine"]["processes"]) for own in ranks] == [KINDS[engine]] * 2


@NEEDS_FSDP2
def test_sharded_adapters_change_nothing(tmp_path):
    alone = divided_run(0, str(tmp_path / "alone"), 8, 1, lora=True)
    (ranks,) = runs(tmp_path, 2, "fsdp2", (2, 2), lora=True)
    assert_same(ranks, alone)


@pytest.mark.parametrize("engine", ENGINES)
def test_four_processes_change_nothing(tmp_path, engine):
    alone = divided_run(0, str(tmp_path / "alone"), 8, 1)
    (ranks,) = runs(tmp_path, 4, engine, (1, 2))
    assert_same(ranks, alone)
