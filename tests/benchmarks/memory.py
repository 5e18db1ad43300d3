"""Peak memory, each side in a process of its own: ``python -m tests.benchmarks.memory SIDE LOAD SIZE``.

Linux only; the peak is the kernel's high-water mark above the level after building the model and a tiny warm-up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from .bench import QUICK, TINY, Bench, random_bench, update_batch
from .cases_sft import plain_rows, sft_trainer
from .cases_sft import step as sft_step
from .cases_text import fill, plain_fill, workload
from .cases_update import measured, update
from .measure import EXACT, EXACT_LAW, THREADS, WARM_ALLOCATOR, Result
from .plain import Clock, denoising
from .plain import update as plain_update


SIDES = ("plain", "ours")
LOADS = {
    "memory, rollout T=0": (EXACT, 15.0, 8.0),
    "memory, rollout T=1": (EXACT_LAW, 15.0, 8.0),
    "memory, update": (EXACT, 5.0, 3.5),
    "memory, sft": (EXACT, 5.0, 3.5),
}
"""Kind, goal and floor. Rollout: batch 4, 96 positions. Update, and text with given answers: batch 8, 256 positions, all weights
trained.
"""

SIZES = replace(QUICK, prompt=64, answer=32, update_rows=8)
WARM_UP = {"batch": 1, "prompt": 2, "answer": 8, "steps": 1, "block_length": 8, "update_rows": 1, "update_length": 8}
WARM_UP |= {"sft_rows": {"text": 1}, "sft_length": {"text": 24}, "sft_prompt": 4}


def job(bench: Bench, side: str, load: str) -> Callable[[], object]:
    """The work of one side."""
    if load == "memory, update":
        batch = update_batch(bench, bench.sizes.update_rows, bench.sizes.update_length)
        step = partial(plain_update, bench.plain, batch, Clock())
        if side == "ours":
            step = partial(update, bench, batch, old_pass=True)
        return partial(measured, bench.model, step)
    if load == "memory, sft":
        trainer = sft_trainer(bench, "text")
        rows = plain_rows(bench, trainer, trainer._given(0))
        if side == "plain":
            return partial(measured, bench.model, partial(denoising, bench.plain, rows, Clock()))
        return partial(measured, bench.model, partial(sft_step, trainer))
    temperature = 1.0 if load.endswith("T=1") else 0.0
    if side == "plain":
        return partial(plain_fill, bench, workload(bench), temperature, Clock())
    return partial(fill, bench, workload(bench), temperature=temperature)


def peak_above_start(bench: Bench, side: str, load: str) -> float:
    """MB that the job needs at its worst, above what the process holds before it."""
    job(replace(bench, sizes=replace(bench.sizes, **WARM_UP)), side, load)()
    bench.model.zero_grad(set_to_none=True)
    work = job(bench, side, load)
    level = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return _status("VmHWM") - level


def _status(key: str) -> float:
    """A field of the process' status, in MB of 1024 kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def memory(bench: Bench) -> list[Result]:
    """All loads, plain against ours."""
    return [_compare(load, bench.size) for load in LOADS]


def _compare(load: str, size: str) -> Result:
    kind, goal, floor = LOADS[load]
    if not Path("/proc/self/clear_refs").exists():
        return Result(name=load, kind=kind, unit="MB", skipped="peaks are read from /proc, which is Linux's")
    peaks = {side: _child(side, load, size) for side in SIDES}
    note = "separate processes, default allocator"
    return Result(name=load, kind=kind, unit="MB", goal=goal, floor=floor, note=note, **peaks)


def _child(side: str, load: str, size: str) -> float:
    # An allocator that keeps what is freed would count it as needed.
    kept = {key: value for key, value in os.environ.items() if key not in WARM_ALLOCATOR}
    command = [sys.executable, "-m", "tests.benchmarks.memory", side, load, size]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env={**kept, **THREADS}, cwd=root, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["mb"]


def main(side: str, load: str, size: str) -> None:
    """Print the peak of one side as JSON."""
    torch.set_num_threads(1)
    bench = random_bench(size, SIZES if size == "mid" else TINY)
    print(json.dumps({"mb": peak_above_start(bench, side, load)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
