"""The benchmark harness: both sides compute the same, its statistics, and the floors it guards."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unigrpo.types import keyed_generator

from ..support import ROOT
from . import report
from .bench import Bench, text_canvas, tiny_bench, update_batch
from .cases import CASES
from .cases_update import update
from .measure import EXACT, Result, chi_square, linear_fit, same_law
from .memory import job, peak_above_start
from .plain import Clock
from .plain import update as plain_update


@pytest.fixture(scope="module")
def bench() -> Bench:
    return tiny_bench()


# ---- both sides compute the same ----


@pytest.mark.parametrize("name", [name for name in CASES if name != "memory"])
def test_every_check_of_a_case_holds_on_the_tiny_model(bench, name):
    results = CASES[name](bench)
    assert results
    for result in results:
        assert result.skipped or result.checks or result.value is not None
        assert all(result.checks.values()), (result.name, result.checks)
    assert not any(p.grad is not None for p in bench.model.parameters())
    assert all(p.requires_grad for p in bench.model.parameters())
    assert not bench.model._forward_hooks


def test_the_plain_forward_is_the_models(bench):
    canvas = text_canvas(bench, 2, 9, 5)
    with torch.no_grad():
        own = bench.model(**bench.policy.inputs(canvas)).logits
    assert (bench.plain.logits(canvas.ids) - own).abs().max() < 1e-5


def test_whole_gradients_are_equal_too(bench):
    batch, gradients = update_batch(bench, 3, 24), []
    for step in (lambda: plain_update(bench.plain, batch, Clock()), lambda: update(bench, batch, old_pass=True)):
        bench.model.zero_grad(set_to_none=True)
        step()
        gradients.append({name: p.grad for name, p in bench.model.named_parameters()})
    bench.model.zero_grad(set_to_none=True)
    for name, plain in gradients[0].items():
        assert (gradients[1][name] - plain).abs().max() <= 1e-4 * plain.abs().max(), name


def test_an_update_batch_hides_a_third_of_each_row_and_no_prompt(bench):
    batch = update_batch(bench, 4, 48)
    assert batch.hidden.sum(1).tolist() == [16] * 4
    assert not (batch.hidden & ~batch.canvas.fill_mask).any()
    assert (batch.canvas.ids != bench.policy.mask_token_id).all()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
@pytest.mark.parametrize("load", ["memory, rollout T=1", "memory, update", "memory, sft"])
def test_memory_jobs_run_and_are_weighed(bench, load):
    for side in ("plain", "ours"):
        assert job(bench, side, load)() is not None
        assert 0 <= peak_above_start(bench, side, load) < 500


# ---- statistics ----


def test_linear_fit():
    fit = linear_fit([1.0, 2.0, 4.0, 8.0], [3.0, 5.0, 9.0, 17.0])
    assert math.isclose(fit["slope"], 2) and math.isclose(fit["intercept"], 1) and math.isclose(fit["r2"], 1)
    assert linear_fit([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 2.0, 1.0])["r2"] < 0.01


def test_chi_square_accepts_the_law_and_refuses_another():
    generator = keyed_generator("chi")
    probs = torch.randn(5000, generator=generator).mul(1.5).softmax(0)
    draws = torch.multinomial(probs, 4000, replacement=True, generator=generator)
    assert same_law(chi_square(draws, probs)) and chi_square(draws, probs) > 0.4
    assert not same_law(chi_square(draws, probs.sqrt() / probs.sqrt().sum()))


def test_a_result_is_judged_by_its_checks_and_its_floor():
    right = Result(name="x", kind=EXACT, ours=1.0, plain=4.0, goal=5.0, floor=3.0, checks={"tokens equal": True})
    assert right.ratio == 4.0 and right.ok
    assert report.verdict(right.as_dict()) == "below goal"
    slow = Result(name="x", kind=EXACT, ours=2.0, plain=4.0, goal=5.0, floor=3.0)
    assert not slow.ok and report.verdict(slow.as_dict()) == "NO: below floor"
    wrong = Result(name="x", kind=EXACT, ours=1.0, plain=9.0, floor=3.0, checks={"tokens equal": False})
    assert not wrong.ok and report.verdict(wrong.as_dict()) == "NO: tokens equal"
    assert Result(name="x", kind=EXACT, skipped="why").ok


# ---- floors ----


def measure(names: list[str], path: Path) -> list[dict]:
    """Results of a quick run in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks", "--quick", "--only", ",".join(names), "--output", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert path.exists(), done.stderr[-2000:]
    return json.loads(path.read_text())["results"]


@pytest.mark.performance
@pytest.mark.timeout(900)
class TestFloors:
    """Ratios of the quick sizes, never absolute times; a case may be measured three times."""

    @pytest.fixture(scope="class")
    def first(self, tmp_path_factory) -> list[dict]:
        return measure(list(CASES), tmp_path_factory.mktemp("floors") / "all.json")

    @pytest.mark.parametrize("case", CASES)
    def test_no_ratio_is_below_its_floor(self, case, first, tmp_path):
        results = [result for result in first if result["case"] == case]
        for _ in range(2):
            if all(result["ok"] for result in results):
                break
            results = measure([case], tmp_path / "again.json")
        assert results and all(result["ok"] for result in results), results
