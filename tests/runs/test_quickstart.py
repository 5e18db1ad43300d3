"""The quickstarts as a user runs them, over seeds, and controls whose rewards carry no information. Run by .ci/slow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from unigrpo.runs.recipe import load_recipe
from unigrpo.runs.thoughts import evaluate_thoughts
from unigrpo.toy.making import decoder

from ..support import ROOT


def commit_seed() -> int:
    """A seed nobody chose: the first digits of the commit's hash."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout[:6], 16)


def train(recipe: str, out: Path, label: str, *overrides: str, command: str = "train", cwd: Path = ROOT) -> dict:
    """The summary of a run in folder ``cwd`` that leaves ``out``, after a line for the record of each task."""
    start = [sys.executable, "-m", "unigrpo", command, recipe, f"output_dir={out}", "disable_tqdm=true", *overrides]
    done = subprocess.run(start, cwd=cwd, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((cwd / out / "summary.json").read_text())
    whole = {"before": summary["held_out_accuracy_before"], "after": summary["held_out_accuracy_after"]}
    for task, own in {recipe: whole, **summary.get("tasks", {})}.items():
        before, after = own["before"], own["after"]
        print(
            f"quickstart {label}, {task}: {100 * before['mean']:.1f} % -> {100 * after['mean']:.1f} % "
            f"[{100 * after['low']:.1f}, {100 * after['high']:.1f}], "
            f"{100 * (after['mean'] - before['mean']):+.1f} points in {summary['train_seconds']:.0f} s of training"
        )
    return summary


@pytest.mark.slow
@pytest.mark.timeout(2500)
@pytest.mark.parametrize("seed", [0, 1, 2, "commit"])
def test_quickstart_gains_thirty_points(seed, tmp_path):
    number = commit_seed() if seed == "commit" else seed
    summary = train("quickstart", tmp_path, f"seed {number}", f"seed={number}")
    assert 0.3 <= summary["held_out_accuracy_before"]["mean"] <= 0.6
    assert summary["held_out_accuracy_before"]["count"] >= 500
    assert summary["gain_points"] >= 30
    assert summary["train_seconds"] < 300


@pytest.mark.slow
@pytest.mark.timeout(5000)
@pytest.mark.parametrize("seed", [0, 1])
def test_from_random_weights_to_a_trained_policy_in_two_commands(seed, tmp_path):
    """The two lines of ``recipes/QUICKSTARTS.md``, in an empty folder."""
    taught, rewarded = Path("runs/quickstart_sft"), Path("runs/quickstart_rl")
    label, chosen = f"from scratch, seed {seed}", f"seed={seed}"
    summary = train("quickstart_sft", taught, label, chosen, command="sft", cwd=tmp_path)
    assert summary["held_out_accuracy_before"]["mean"] == 0
    assert 0.3 <= summary["held_out_accuracy_after"]["mean"] <= 0.65
    again = train("quickstart", rewarded, f"after it, seed {seed}", chosen, f"model.path={taught}", cwd=tmp_path)
    assert again["held_out_accuracy_before"] == summary["held_out_accuracy_after"]
    assert again["gain_points"] >= 20


@pytest.mark.slow
@pytest.mark.timeout(5000)
def test_a_dream_that_was_taught_here_learns_from_rewards_and_not_from_shuffled_ones(tmp_path):
    """The commands of ``unigrpo/models/README.md``."""
    decoder.shape("dream", tmp_path / "dream")
    start = (f"model.path={tmp_path / 'dream'}", "policy=null", "model_init_kwargs=null", "objective=dream")
    train("quickstart_sft", tmp_path / "sft", "a Dream, taught", *start, command="sft")
    own = (f"model.path={tmp_path / 'sft'}", "policy=null")
    for seed in (0, 1):
        summary = train("quickstart", tmp_path / str(seed), f"a Dream, seed {seed}", *own, f"seed={seed}")
        assert summary["gain_points"] >= 20 and summary["train_seconds"] < 600
    names = ("tests.support.controls:shuffled_correctness", "tests.support.controls:shuffled_format")
    shuffled = [f"rewards.{index}.name={name}" for index, name in enumerate(names)]
    assert train("quickstart", tmp_path / "control", "a Dream, control", *own, *shuffled)["gain_points"] < 10


@pytest.mark.slow
@pytest.mark.timeout(2500)
def test_lora_quickstart_learns_too(tmp_path):
    overrides = ("lora.r=16", "lora.lora_alpha=32", "learning_rate=1e-3")
    summary = train("quickstart", tmp_path, "LoRA r=16, seed 0", *overrides)
    assert summary["lora"] is True
    assert summary["gain_points"] >= 15


@pytest.mark.slow
@pytest.mark.timeout(2500)
def test_shuffled_rewards_teach_nothing(tmp_path):
    names = ("tests.support.controls:shuffled_correctness", "tests.support.controls:shuffled_format")
    overrides = [f"rewards.{index}.name={name}" for index, name in enumerate(names)]
    summary = train("quickstart", tmp_path, "control, shuffled rewards, seed 0", "seed=0", *overrides)
    # Shuffled scores have the mean of the real ones: what was drawn at temperature 1, 640 answers at the start and 1280 at the end.
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    drawn = [line["rewards/shuffled_correctness/mean"] for line in lines if "reward" in line]
    assert sum(drawn[-10:]) / 10 - sum(drawn[:5]) / 5 < 0.05
    # Noise moves the greedy choice between two answers that are nearly as likely, so that it gets more room.
    assert summary["gain_points"] < 10


@pytest.mark.slow
@pytest.mark.timeout(2500)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pictures_gain_twenty_points_by_their_pixels(seed, tmp_path):
    summary = train("quickstart_image", tmp_path, f"pictures, seed {seed}", f"seed={seed}")
    assert 0.2 <= summary["held_out_accuracy_before"]["mean"] <= 0.65
    assert summary["held_out_accuracy_before"]["count"] >= 900
    assert summary["gain_points"] >= 20
    assert summary["train_seconds"] < 600
    assert (tmp_path / "images.png").exists() and (tmp_path / "reward_curve.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(2500)
def test_rewards_on_pictures_mend_thoughts(tmp_path):
    summary = train("quickstart_think_draw", tmp_path, "think, then draw, seed 0", "max_steps=36")
    assert summary["gain_points"] >= 10


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_shipped_policy_draws_its_thought_and_not_its_prompt(tmp_path):
    found = evaluate_thoughts(load_recipe("quickstart_think_draw", [f"output_dir={tmp_path}"]))["thoughts"]
    right, swapped = found["given"]["of_prompt"], found["swapped"]
    assert right["mean"] >= 0.35 and swapped["of_thought"]["mean"] >= right["mean"] - 0.1
    assert swapped["of_prompt"]["mean"] <= 0.05 and found["empty"]["of_prompt"]["mean"] <= 0.05
    assert found["own"]["of_prompt"]["high"] < right["low"], "colours are misread"


@pytest.mark.slow
@pytest.mark.timeout(2500)
def test_shuffled_scores_do_not_teach_drawing(tmp_path):
    override = "rewards.0.name=tests.support.controls:shuffled_clip_score"
    summary = train("quickstart_image", tmp_path, "pictures, control, shuffled scores, seed 0", override)
    assert summary["gain_points"] < 5


@pytest.mark.slow
@pytest.mark.timeout(2500)
def test_a_mixed_run_raises_all_three_tasks(tmp_path):
    summary = train("quickstart_mixed", tmp_path, "mixed, seed 0")
    assert summary["tasks"].keys() == {"text", "mmu", "t2i"}
    for task, own in summary["tasks"].items():
        assert own["gain_points"] >= 5, task
        assert own["after"]["low"] > own["before"]["high"], task
