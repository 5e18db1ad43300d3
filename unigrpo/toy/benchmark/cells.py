"""A cell of the benchmark: one task, one algorithm, one seed; one training and one JSON file."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers.trainer_callback import PrinterCallback

from ...config.arguments import UniGRPOConfig
from ...config.presets import PRESETS
from ...runs.build import build_accuracy, build_config
from ...runs.recipe import Recipe
from ...runs.train import build_trainer, versions
from ...trainer import UniGRPOTrainer
from ...training.evaluation import held_out_answers
from .budget import Budget, PassCounter
from .tasks import TASKS, Task


FORMAT = 1
"""Part of every digest: raise it when the meaning of a record or of its measurement changes."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the comparison."""

    task: str
    algorithm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.algorithm}-{self.seed}"

    def path(self, output_dir: Path) -> Path:
        """Where the record of the cell lies."""
        return output_dir / "cells" / f"{self.name}.json"


def cells_of(tasks: list[str], algorithms: list[str], seeds: list[int]) -> list[Cell]:
    """All cells that make sense; seed by seed, so that an interrupted benchmark compares everything on the seeds it has."""
    pairs = [(task, algorithm) for task in tasks for algorithm in algorithms if suits(algorithm, TASKS[task].kind)]
    return [Cell(task, algorithm, seed) for seed in seeds for task, algorithm in pairs]


def suits(algorithm: str, kind: str) -> bool:
    """Left-to-right likelihoods are for text: pictures are not written in that order."""
    return (
        kind == "text" or {**PRESETS[algorithm], **PRESETS[algorithm].get(kind, {})}.get("noising") != "autoregressive"
    )


def settings_of(cell: Cell, task: Task) -> dict[str, Any]:
    """Everything that decides what a cell measures, as JSON values."""
    recipe = task.recipe_of(cell.algorithm, cell.seed)
    return {
        "format": FORMAT,
        "task": cell.task,
        "algorithm": cell.algorithm,
        "seed": cell.seed,
        "budget": task.budget,
        "seconds": task.seconds,
        "held_out": task.held_out,
        "model": recipe.model.path,
        "rewards": [{"name": own.name, "weight": own.weight, "args": own.args} for own in recipe.rewards],
        "accuracy": recipe.accuracy,
        "datasets": [{"path": own.path, "split": own.split, "limit": own.limit} for own in recipe.datasets],
        "lora": recipe.lora,
        "config": recipe.config,
        "resolved": resolved(recipe, task.kind),
    }


def resolved(recipe: Recipe, kind: str) -> dict[str, Any]:
    """Every knob of the run with what the algorithm gives to it; why there is none, where the two do not fit."""
    try:
        args = build_config(recipe)
    except ValueError as error:
        return {"error": str(error)}
    whole = {name: getattr(args, name) for name in UniGRPOConfig.__annotations__}
    return {**whole, kind: asdict(args.for_task(kind))}


def digest(settings: dict[str, Any]) -> str:
    """A short hash of settings; a record is used only while its own is that of the settings asked for."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_record(cell: Cell, task: Task, output_dir: Path) -> dict[str, Any] | None:
    """The record of a cell, finished or failed; None where there is none, or one of other settings."""
    try:
        record = json.loads(cell.path(output_dir).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return record if record.get("digest") == digest(settings_of(cell, task)) else None


def save_record(cell: Cell, output_dir: Path, record: dict[str, Any]) -> None:
    """Writes the record beside its place and moves it there: a reader never sees half of one."""
    path = cell.path(output_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(record, indent=1, default=str) + "\n")
    aside.replace(path)


def header_of(cell: Cell, task: Task) -> dict[str, Any]:
    """What a record holds whether or not the run succeeds."""
    settings = settings_of(cell, task)
    return {
        "cell": cell.name,
        "digest": digest(settings),
        "settings": settings,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "platform": platform.platform(),
    }


def run_cell(cell: Cell, task: Task, output_dir: Path) -> dict[str, Any]:
    """Runs one cell and leaves its record, which holds ``error`` where the run failed."""
    record = header_of(cell, task)
    try:
        record |= measured(cell, task)
    except Exception as error:
        record |= {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    save_record(cell, output_dir, record)
    return record


def measured(cell: Cell, task: Task) -> dict[str, Any]:
    """Trains within the budget, and measures before and after; ``start`` and ``end`` hold 0 or 1 by prompt."""
    began = time.perf_counter()
    counter = PassCounter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(task.recipe_of(cell.algorithm, cell.seed, folder))
        trainer.remove_callback(PrinterCallback)
        start = outcomes(trainer, task)
        budget = Budget(counter, task.budget, task.seconds)
        trainer.add_callback(budget)
        cpu_began = time.process_time()
        with counter.counting(trainer.model):
            trainer.train()
        seconds, cpu_seconds = budget.seconds(), time.process_time() - cpu_began
        end = outcomes(trainer, task)
    return {
        "passes": counter.passes,
        "optimizer_steps": trainer.state.global_step,
        "train_seconds": round(seconds, 2),
        "train_cpu_seconds": round(cpu_seconds, 2),
        "wall_seconds": round(time.perf_counter() - began, 2),
        "stopped_by": budget.stopped_by or "end",
        "start_mean": sum(start) / len(start),
        "end_mean": sum(end) / len(end),
        "start": start,
        "end": end,
        "curve": budget.curve,
    }


def outcomes(trainer: UniGRPOTrainer, task: Task) -> list[int]:
    """1 for each held-out prompt whose answer the task's own measure finds right, else 0."""
    judges = build_accuracy(task.recipe_of(trainer.args.algorithm, trainer.args.seed))
    rows = [trainer.eval_dataset[index] for index in range(len(trainer.eval_dataset))]
    samples = held_out_answers(trainer.pipeline(), rows, 1, trainer.args.per_device_eval_batch_size)
    found = []
    for sample in samples:
        right = judges[sample.task](sample.completion, sample.row["solution"])
        found.append(int(bool(right)))
    return found


def commit() -> str | None:
    """The short hash of the source tree, with ``+`` where files differ from it; None outside a repository."""
    root = Path(__file__).parents[3]

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None
        changed = git(
            "--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--", "unigrpo", "rewards"
        )
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
