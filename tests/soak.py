"""A long run watched from outside: memory, open handles, threads and child processes over time.

``python -m tests.soak OUTPUT [--seconds 3600]`` trains the quickstart's policy with everything that holds on to something: a
rollout window, checkpoints, held-out answers, a child process that compares formulas, requests to a service, rewards that fail
and hang. It leaves ``soak.csv`` and ``soak.png`` and prints the slopes.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil


ROOT = Path(__file__).parent.parent
SETTLING = 0.25
"""Share of the time that is left out of the slopes: caches fill, the allocator takes its share."""

CALLS = itertools.count(1)


def formulas(prompts, completions, solution, **_: Any) -> list[float | None]:
    """A few rows compared by math-verify in its child process, which is killed before every tenth call."""
    from unigrpo.rewards._math_process import WORKER
    from unigrpo.rewards.math import math_correctness

    if next(CALLS) % 10 == 0 and WORKER.pid is not None:
        os.kill(WORKER.pid, signal.SIGKILL)
    numbers = [int(own.rpartition(" ")[2]) for own in solution[:4]]
    # With a letter in it, no number that is compared without the child.
    golds = [f"(x+{own})^2" for own in numbers]
    texts = [f"\\boxed{{x^2+{2 * own}x+{own * own}}}" for own in numbers]
    scores = math_correctness(prompts=prompts[:4], completions=texts, solution=golds)
    return scores + [None] * (len(prompts) - 4)


async def slow(completions, **_: Any) -> list[float]:
    """Async; one call in fifty takes longer than it may."""
    await asyncio.sleep(30.0 if next(CALLS) % 50 == 0 else 0.001)
    return [0.0] * len(completions)


def failing(completions, **_: Any) -> list[float]:
    """Raises in one call of seven."""
    if next(CALLS) % 7 == 0:
        raise RuntimeError("now and then")
    return [0.0] * len(completions)


def serve() -> str:
    """The example's reward service on a thread; its URL."""
    sys.path.insert(0, str(ROOT / "examples"))
    import reward_server

    reward_server.Service.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), reward_server.Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/score"


def train(output: Path, seconds: float) -> None:
    """The run itself, which ends after ``seconds``."""
    import torch
    from transformers import TrainerCallback

    from unigrpo.runs.recipe import load_recipe
    from unigrpo.runs.train import build_trainer

    torch.set_num_threads(1)
    rewards = [
        {"name": "think_format", "weight": 0.5},
        {"name": "math_correctness", "weight": 2.0},
        *({"name": f"tests.soak:{name}", "weight": 0.0} for name in ("formulas", "slow", "failing")),
        {"name": "remote", "weight": 0.0, "args": {"url": serve()}},
    ]
    values = {
        "per_device_train_batch_size": 64,
        "max_steps": 10**6,
        "lr_scheduler_type": "constant",
        "save_strategy": "steps",
        "save_steps": 100,
        "save_total_limit": 2,
        "logging_steps": 20,
        "eval_strategy": "steps",
        "eval_steps": 200,
        "eval_datasets.0.limit": 64,
        "disable_tqdm": "true",
        "output_dir": str(output / "run"),
        "reward_error": "none",
        "reward_timeout": 2.0,
        "rewards": json.dumps(rewards),
    }
    recipe = load_recipe(str(ROOT / "recipes/quickstart.yaml"), [f"{key}={value}" for key, value in values.items()])
    trainer = build_trainer(recipe)
    until = time.monotonic() + seconds

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs: Any) -> None:
            control.should_training_stop = time.monotonic() > until

    trainer.add_callback(Stop())
    trainer.train()
    (output / "done.json").write_text(json.dumps({"steps": trainer.state.global_step}))


def watch(child: psutil.Process, path: Path, every: float) -> tuple[list[dict[str, float]], set[psutil.Process]]:
    """Measurements of ``child`` and its descendants until it ends, and every descendant that was ever seen."""
    rows, descendants, start = [], set(), time.monotonic()
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["seconds", "memory_mb", "handles", "threads", "children"])
        writer.writeheader()
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            try:
                below = child.children(recursive=True)
                row = {
                    "seconds": round(time.monotonic() - start, 1),
                    "memory_mb": round(child.memory_info().rss / 1e6, 2),
                    "handles": child.num_fds(),
                    "threads": child.num_threads(),
                    "children": len(below),
                }
            except psutil.NoSuchProcess:
                break
            descendants |= set(below)
            rows.append(row)
            writer.writerow(row)
            file.flush()
            time.sleep(every)
    return rows, descendants


def slope(rows: list[dict[str, float]], name: str) -> float:
    """Change of ``name`` an hour, by least squares after the settling time."""
    settled = [row for row in rows if row["seconds"] >= SETTLING * rows[-1]["seconds"]]
    hours = np.array([row["seconds"] for row in settled]) / 3600
    return float(np.polyfit(hours, np.array([row[name] for row in settled]), 1)[0])


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Memory, handles and threads over time."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 1, sharex=True, figsize=(7, 4.5), layout="constrained")
    minutes = [row["seconds"] / 60 for row in rows]
    panels[0].plot(minutes, [row["memory_mb"] for row in rows])
    panels[0].set(ylabel="memory, MB", ylim=(0, None))
    for name in ("handles", "threads", "children"):
        panels[1].plot(minutes, [row[name] for row in rows], label=name)
    panels[1].set(xlabel="minutes", ylabel="count", ylim=(0, None))
    panels[1].legend(loc="upper right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def soak(output: Path, seconds: float, every: float = 5.0) -> dict[str, float]:
    """Runs and watches for ``seconds``; slopes an hour, the last memory, and processes that were left behind."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / "log.txt").open("w") as log:
        arguments = [sys.executable, "-m", "tests.soak", str(output), "--seconds", str(seconds), "--child"]
        child = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            rows, descendants = watch(psutil.Process(child.pid), output / "soak.csv", every)
        finally:
            child.kill()
            status = child.wait()
    if not (output / "done.json").exists():
        raise RuntimeError(f"the run ended with status {status}: {(output / 'log.txt').read_text()[-2000:]}")
    draw(rows, output / "soak.png")
    left = [own for own in descendants if own.is_running() and own.status() != psutil.STATUS_ZOMBIE]
    return {
        "minutes": round(rows[-1]["seconds"] / 60, 1),
        "steps": json.loads((output / "done.json").read_text())["steps"],
        "memory_mb": rows[-1]["memory_mb"],
        "memory_mb_an_hour": round(slope(rows, "memory_mb"), 2),
        "handles_an_hour": round(slope(rows, "handles"), 2),
        "threads_an_hour": round(slope(rows, "threads"), 2),
        "children_seen": len(descendants),
        "orphans": len(left),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--child", action="store_true", help="be the run that is watched")
    arguments = parser.parse_args()
    if arguments.child:
        train(arguments.output, arguments.seconds)
        return
    print("soak:", json.dumps(soak(arguments.output, arguments.seconds)))


if __name__ == "__main__":
    main()
