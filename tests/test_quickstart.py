"""The quickstart as a user runs it, over seeds, and a control whose rewards carry no information. Run by .ci/slow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "quickstart.yaml"


def commit_seed() -> int:
    """A seed nobody chose: the first digits of the commit's hash."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout[:6], 16)


def train(tmp_path: Path, label: str, *overrides: str) -> dict:
    command = [sys.executable, "-m", "unigrpo", "train", str(RECIPE), f"output_dir={tmp_path}", "disable_tqdm=true"]
    done = subprocess.run([*command, *overrides], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "summary.json").read_text())
    before, after = summary["held_out_accuracy_before"], summary["held_out_accuracy_after"]
    print(
        f"quickstart {label}: {100 * before['mean']:.1f} % -> {100 * after['mean']:.1f} % "
        f"[{100 * after['low']:.1f}, {100 * after['high']:.1f}], {summary['gain_points']:+.1f} points "
        f"in {summary['train_seconds']:.0f} s of training"
    )
    return summary


@pytest.mark.slow
@pytest.mark.timeout(1300)
@pytest.mark.parametrize("seed", [0, 1, 2, "commit"])
def test_quickstart_gains_thirty_points(seed, tmp_path):
    number = commit_seed() if seed == "commit" else seed
    summary = train(tmp_path, f"seed {number}", f"seed={number}")
    assert 0.2 <= summary["held_out_accuracy_before"]["mean"] <= 0.6
    assert summary["held_out_accuracy_before"]["count"] >= 500
    assert summary["gain_points"] >= 30
    assert summary["train_seconds"] < 300


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_lora_quickstart_learns_too(tmp_path):
    summary = train(tmp_path, "LoRA r=16, seed 0", "lora.r=16", "lora.lora_alpha=32", "learning_rate=1e-3")
    assert summary["lora"] is True
    assert summary["gain_points"] >= 15


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_shuffled_rewards_teach_nothing(tmp_path):
    names = ("tests.controls:shuffled_correctness", "tests.controls:shuffled_format")
    overrides = [f"rewards.{index}.name={name}" for index, name in enumerate(names)]
    summary = train(tmp_path, "control, shuffled rewards, seed 0", "seed=0", *overrides)
    assert summary["gain_points"] < 5
