"""The benchmark harness: both sides compute the same, its statistics, and the floors it guards."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from unigrpo.rng import keyed_generator

from .benchmarks import report
from .benchmarks.__main__ import parse
from .benchmarks.cases import CASES
from .benchmarks.cases_update import update
from .benchmarks.device import SMALL, FlopMeter, device_report
from .benchmarks.measure import EXACT, Result, chi_square, interleave, linear_fit, same_law
from .benchmarks.memory import job, peak_above_start
from .benchmarks.mid import Bench, text_canvas, tiny_bench, update_batch
from .benchmarks.plain import Clock, even_shares
from .benchmarks.plain import update as plain_update


ROOT = Path(__file__).parents[1]


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
@pytest.mark.parametrize("load", ["memory, rollout T=1", "memory, update"])
def test_memory_jobs_run_and_are_weighed(bench, load):
    for side in ("plain", "ours"):
        assert job(bench, side, load)() is not None
        assert 0 <= peak_above_start(bench, side, load) < 500


# ---- statistics ----


def test_rounds_are_taken_in_turn():
    calls = []
    timed = interleave({name: lambda name=name: calls.append(name) or name for name in ("a", "b")}, 3)
    assert calls == ["a", "b"] * 3
    assert timed["b"].value == "b" and len(timed["b"].seconds) == 3
    assert timed["a"].median == sorted(timed["a"].seconds)[1]


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


def test_clock_and_even_shares():
    clock = Clock()
    with clock("part"):
        time.sleep(0.01)
    assert clock.seconds["part"] >= 0.01
    assert even_shares(11, 3) == [4, 4, 3]


# ---- report and command ----


def example() -> dict:
    growth = {"axis": "completions", "x": [1.0, 2.0], "seconds": [1.0, 2.0], "slope": 1.0, "intercept": 0.0, "r2": 1.0}
    results = [
        Result(name="text", kind=EXACT, ours=1.0, plain=4.0, goal=5.0, floor=3.0),
        Result(name="line", kind=EXACT, value=1.0, extra=growth),
        Result(name="cache", kind=EXACT, skipped="none here"),
    ]
    described = {"model": "mid", "parameters": 1, "vocabulary": 2, "dtype": "float32", "device": "cpu", "cpu": "x"}
    described |= {"threads": 1, "allocator": "warm", "torch": "2"}
    return {"environment": described, "results": [result.as_dict() for result in results]}


def test_the_readme_table_is_replaced_and_the_rest_left(tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        report.write_readme(example(), path)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text.count("| text | exact | 4.000 s | 1.000 s | x4.00 | 5 | 3 | below goal |") == 1
    assert "skipped: none here" in text
    report.show(json.loads(json.dumps(example())))
    assert "below goal" in capsys.readouterr().out
    path.write_text("nothing")
    with pytest.raises(ValueError, match="lacks the comments"):
        report.write_readme(example(), path)
    assert report.BEGIN in report.README.read_text()


def test_the_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    report.plot_growth(example(), tmp_path / "linear.png")
    assert (tmp_path / "linear.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_refuses_unknown_cases(capsys):
    assert parse(["--only", "text,t2i"]).only == ["text", "t2i"]
    with pytest.raises(SystemExit):
        parse(["--only", "texts"])
    assert "'texts'" in capsys.readouterr().err


# ---- the large size, on the tiny model ----


def test_the_device_report_on_a_cpu():
    found = device_report("tiny", "cpu", SMALL, peak_tflops=1.0)
    lines = {line["name"]: line for line in json.loads(json.dumps(found))["device"]}
    assert list(lines) == ["rollout T=0", "rollout T=1", "t2i", "update", "update, 1 iteration"]
    for line in lines.values():
        assert line["rate"] > 0 and line["tflops"] > 0 and line["share_of_limit"] == line["tflops"]
        assert line["hottest"] and 0 < line["hottest"][0]["share"] <= 1
    report.show(found)


def test_the_meter_counts_what_a_forward_computes(bench):
    config = bench.model.config
    canvas = text_canvas(bench, 2, 6, 4)
    meter = FlopMeter(config=config, trunk=1000)
    with meter.counting(bench.model), torch.no_grad():
        bench.model(**bench.policy.inputs(canvas), select=canvas.fill_mask, token_space=canvas.token_space)
    trunk = 20 * (2 * 1000 + 4 * 10 * config.d_model * config.n_layers)
    assert meter.total() == trunk + 8 * 2 * config.d_model * config.vocab_size


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
