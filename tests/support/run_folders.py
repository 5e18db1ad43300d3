"""Folders as runs leave them, without the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unigrpo.training.checkpoints.run_record import RunRecord, write_record


def line(step: int, **values: Any) -> dict[str, Any]:
    """A log with rewards."""
    found = {"step": step, "loss": 0.1 / step, "kl": 0.001 * step, "reward": 1 + 0.1 * step, "grad_norm": 1.0}
    found |= {"clip_ratio/region_mean": 0.01, "rewards/math/mean": 0.1 * step, "completions/mean_length": 12.0}
    return {**found, "time/rollout": 3.0, "time/update": 1.0, **values}


def accuracy(mean: float) -> dict[str, Any]:
    return {"mean": mean, "low": max(mean - 0.1, 0.0), "high": min(mean + 0.1, 1.0), "count": 64}


def answer(said: str, reward: float = 0.0, gold: str = "7") -> dict[str, Any]:
    return {"prompt": f"of {said}", "completion": said, "gold": gold, "reward": reward}


def written(said: str, parts: int = 4) -> dict[str, Any]:
    """A recorded answer in ``parts`` tokens, a step each, the first one last."""
    tokens = [said[start::parts] or "-" for start in range(parts)]
    span = {"tokens": tokens, "steps": [parts - 1, *range(parts - 1)]}
    return {"prompt": said, "task": "text", "gold": said, "spans": [span]}


def run_folder(
    path: Path,
    *,
    steps: int = 6,
    finished: bool = True,
    held_out: bool = True,
    text: str = "<think>3</think>7",
    name: str = "quickstart",
    total: int = 6,
) -> Path:
    """A folder of ``unigrpo train`` at ``steps`` of ``total``; ``text`` is what the model, the dataset and the recipe say."""
    path.mkdir(parents=True)
    record = RunRecord(
        run_id="0123456789ab",
        kept={"rewards": [{"name": "math of text", "weight": 2.0}], "policy": text},
        told={"max_steps": total},
        about={
            "recipe": name,
            "model": "builtin:arithmetic",
            "command": "train",
            "overrides": ["seed=1"],
            "note": text,
        },
    )
    write_record(path, record)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line(step + 1)) + "\n" for step in range(steps)))
    labels = (["before"] if held_out else []) + (["after"] if held_out and finished else [])
    for number, label in enumerate(labels):
        mean = accuracy(0.5 + 0.2 * number)
        shown = [answer(text), answer("right", 2.0)]
        found = {"accuracy": mean, "tasks": {"text": mean}, "rewards": {"reward": 1.0 + number}, "shown": shown}
        (path / f"{label}.json").write_text(json.dumps(found))
        (path / f"denoising_{label}.json").write_text(json.dumps([written(text)]))
    if finished:
        summary = {"run_id": "0123456789ab", "recipe": name, "optimizer_steps": steps, "train_seconds": 61.0}
        summary |= {"versions": {"python": "3.11", "extra": text}, "engine": {"kind": "NO"}}
        summary |= {f"held_out_accuracy_{label}": accuracy(0.5 + 0.2 * place) for place, label in enumerate(labels)}
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def evaluation_folder(path: Path, text: str = "no", finished: bool = True) -> Path:
    """A folder of `unigrpo evaluate`, with one picture among its answers."""
    from PIL import Image

    (path / "images").mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(path / "images" / "0.png")
    sums = {"metric": "accuracy", **accuracy(0.625), "pass@k": {"1": accuracy(0.5), "4": accuracy(0.75)}}
    drawn = {"metric": "clip_score", "mean": 71.5, "low": 70.0, "high": 73.0, "count": 1}
    results = {
        "model": {"path": text},
        "finished": finished,
        "settings": {"seed": 0},
        "versions": {"torch": "2"},
        "tasks": {"sums": sums, "draw": drawn},
    }
    (path / "results.json").write_text(json.dumps(results))
    answers = [
        {"task": "sums", "prompt": text, "completion": text, "gold": text, "score": score} for score in (1.0, 0.25)
    ]
    answers.append({"task": "draw", "prompt": text, "completion": "images/0.png", "picture": True, "score": 30.0})
    # Nothing outside the folder is shown.
    answers.append({"task": "draw", "prompt": text, "completion": "../secret.png", "score": 0.125})
    Image.new("RGB", (16, 16), "blue").save(path.parent / "secret.png")
    (path / "answers.jsonl").write_text("".join(json.dumps(own) + "\n" for own in answers))
    return path
