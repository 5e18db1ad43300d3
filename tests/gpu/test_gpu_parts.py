"""The GPU command's parts: laws can fail, figures are compared with the right thing, stages keep to themselves."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import pytest
import torch

from ..benchmarks.bench import tiny_bench
from ..support.laws import difference, gradients
from . import laws, laws_training, memory, speed, stages
from .cases import learner
from .job import Job, adapted
from .steps import Deadline, repeat, run_steps


# ---- laws can fail ----


@pytest.fixture
def another_model(monkeypatch):
    """The device's model has one weight that is not the CPU's."""
    real, calls = laws.tiny_on, []

    def tiny_on(device, *dtype):
        calls.append(device)
        bench = real("cpu", *dtype)
        if device == "other":
            bench.model.model.transformer["blocks"][0].q_proj.weight.data.mul_(1.5)
        return bench

    monkeypatch.setattr(laws, "tiny_on", tiny_on)
    return calls


@pytest.mark.parametrize("name", laws.SEEN_BY_WEIGHTS)
def test_another_model_is_seen(another_model, name):
    measured, bound = laws.AGREEMENT[name]("other")
    assert measured > bound
    assert set(another_model) == {"cpu", "other"}


def test_a_policy_that_moves_is_seen(monkeypatch):
    real = laws_training.trainer_on
    monkeypatch.setattr(
        laws_training, "trainer_on", lambda *own, **more: real(*own, **{**more, "learning_rate": 1e-3})
    )
    for lora in (False, True):
        assert 0 < laws_training.unmoved("cpu", lora=lora) < math.inf


@pytest.mark.parametrize("same_logs", [False, True])
def test_another_run_is_no_resumed_one(monkeypatch, same_logs):
    """Its logs tell, and without them its weights."""
    real, rates = laws_training.trainer_on, iter((1e-3, 2e-3))
    monkeypatch.setattr(
        laws_training, "trainer_on", lambda *own, **more: real(*own, **more, learning_rate=next(rates))
    )
    if same_logs:
        monkeypatch.setattr(laws_training, "history", lambda trainer: {3: {}, 4: {}})
    measured = laws_training.resumed("cpu")
    assert 0 < measured < math.inf if same_logs else measured == math.inf


# ---- what speed and memory are compared with ----


def test_the_adapter_trains_alone_and_its_plain_update_is_ours():
    bench, sides = adapted(tiny_bench()), []
    for name, weight in bench.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(0))
    for kind in ("plain", "old pass"):
        sides.append((float(learner(bench, kind)()), gradients(bench.model)))
    assert sides[0][0] == pytest.approx(sides[1][0], rel=1e-5)
    assert difference(sides[0][1], sides[1][1]) < 1e-4
    linear = sum(isinstance(module, torch.nn.Linear) for module in tiny_bench().model.modules()) - 1
    assert len(sides[0][1]) == 2 * linear and all("lora_" in name for name in sides[0][1])
    assert not bench.model.get_output_embeddings().weight.requires_grad


def test_a_few_steps_stand_for_all():
    model, ticks = torch.nn.Identity(), []

    def work():
        for step in range(5):
            ticks.append(step)
            model(step)

    found = run_steps(model, work, 3, Deadline.after(60), "cpu")
    assert (found.count, found.whole, len(ticks)) == (3, False, 4)
    assert run_steps(model, work, 5, Deadline.after(60), "cpu").whole
    late = run_steps(model, work, 5, Deadline.after(0), "cpu")
    assert (late.count, late.whole) == (1, False), "the first step is always made"
    assert repeat(lambda: time.sleep(0.2), 9, Deadline.after(0.5), "cpu").count <= 2


# ---- stages ----


def options(folder: Path, minutes: float) -> argparse.Namespace:
    return argparse.Namespace(output=folder, size="tiny", device="cpu", minutes=minutes, peak_tflops=1.0)


def staged(monkeypatch, tmp_path, minutes: float, ended: list | None = None, **works) -> tuple[int, dict, str]:
    """Exit status and files of a run whose stages are ``works``; ``ended`` is told how the process would have ended."""
    own = tuple(stages.Stage(name, work, 60.0, 1.0, 1.0) for name, work in works.items())
    monkeypatch.setattr(stages, "STAGES", own)
    monkeypatch.setattr(stages, "quiet", lambda: None)
    monkeypatch.setattr(stages.os, "_exit", (lambda status: None) if ended is None else ended.append)
    status = stages.run_stages(options(tmp_path, minutes), time.monotonic())
    return status, json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()


def test_a_stage_that_fails_does_not_stop_the_next(monkeypatch, tmp_path):
    def fails(job):
        job.found["lines"] = []
        raise RuntimeError("out of memory, or worse")

    def works(job):
        seen = json.loads((tmp_path / "gpu.json").read_text())
        assert "out of memory" in seen["stages"]["speed"]["error"], "files are written after every stage"
        job.found["steps"] = 1

    status, data, text = staged(monkeypatch, tmp_path, 1.0, speed=fails, quick=works)
    assert status == 1 and data["finished"]
    assert data["stages"]["speed"]["error"].endswith("RuntimeError: out of memory, or worse")
    assert data["stages"]["quick"]["error"] is None and data["stages"]["quick"]["found"] == {"steps": 1}
    assert "The stage failed" in text and "out of memory, or worse" in text


def test_a_stage_without_time_is_left_out(monkeypatch, tmp_path):
    status, data, text = staged(monkeypatch, tmp_path, 2 / 60, laws=lambda job: time.sleep(1.2), hot=lambda job: 1 / 0)
    assert status == 0 and "needs 1 seconds at least" in data["stages"]["hot"]["skipped"]
    assert "Left out: it needs 1 seconds at least" in text


def test_a_stage_that_hangs_is_cut_off(monkeypatch, tmp_path):
    ended = []

    def hangs(job):
        until = Deadline.after(20)
        while not ended and until.left > 0:
            time.sleep(0.05)
        seen = json.loads((tmp_path / "gpu.json").read_text())
        assert "did not end by itself" in seen["stages"]["hot"]["error"]

    staged(monkeypatch, tmp_path, 2 / 60, ended, hot=hangs)
    assert ended == [1]


def test_a_measurement_that_fails_is_left_out_alone(monkeypatch):
    told: list[str] = []
    job = Job("tiny", "cpu", 1.0, told.append)
    job.deadline = Deadline.after(60)

    def fails(*_):
        raise MemoryError("too large")

    real, arithmetic, held = speed.learner, memory.held, []
    monkeypatch.setattr(memory, "held", lambda bench: held.append(arithmetic(bench)) or held[0])
    monkeypatch.setattr(speed, "learner", lambda bench, kind: (fails if kind == "plain" else real)(bench, kind))
    speed.speed(job)
    assert [line["name"] for line in job.found["failed"]] == ["update, plain"]
    assert len(job.found["lines"]) == 10 and len(job.found["memory"]) == 2
    phases = held[0][1].phases
    for line, phase in zip(job.found["memory"], ("update", "rollout"), strict=True):
        assert line["what"].startswith(phase) and line["arithmetic_gb"] == pytest.approx(phases[phase] / 1e9)
    job.deadline = Deadline.after(0)
    speed.speed(job)
    assert not job.found["lines"] and len(job.found["left_out"]) == 12
