"""From the records of cells to gains with intervals, and to the markdown table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ...training.evaluation import Accuracy
from .cells import Cell, commit
from .tasks import Task


Records = dict[Cell, dict[str, Any] | None]
"""The record of each cell that was asked for; None where it has not been run with these settings."""


def gain(start: list[list[int]], end: list[list[int]], draws: int = 2000, seed: int = 0) -> Accuracy:
    """Mean of ``end - start`` with its 95 % percentile-bootstrap interval over seeds and prompts.

    A draw picks seeds, and one set of prompts for all of them, because every seed is measured on the same prompts; a prompt
    keeps its start and end together. Three seeds say little about other seeds: the interval is narrow in that respect.

    Args:
        start, end: 0/1 outcomes, a list a seed, the same prompts in both.

    Raises:
        ValueError: no seeds, seeds without prompts, or with different numbers of them.
    """
    if not start or not all(start):
        raise ValueError("no outcomes to average")
    rng = np.random.default_rng(seed)
    differences = np.subtract(end, start, dtype=np.float64)
    seeds, prompts = differences.shape
    means = np.zeros(draws)
    for place in range(draws):
        of_seeds = differences[rng.integers(0, seeds, seeds)].mean(axis=0)
        means[place] = of_seeds[rng.integers(0, prompts, prompts)].mean()
    low, high = np.percentile(means, [2.5, 97.5])
    return Accuracy(mean=float(differences.mean()), low=float(low), high=float(high), count=differences.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One field of the table: the runs of an algorithm on a task.

    Attributes:
        seeds, missing, failed: seeds that were measured, have not been run, and failed.
        start, end, gain, low, high: percent and points; None without a measured seed.
        passes, optimizer_steps, train_cpu_seconds: means over the measured seeds.
        stopped_by_time: seeds that the clock ended before the budget.
        errors: of the failed ones, by seed.
    """

    task: str
    algorithm: str
    seeds: list[int]
    missing: list[int]
    failed: list[int]
    start: float | None = None
    end: float | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    passes: float | None = None
    optimizer_steps: float | None = None
    train_cpu_seconds: float | None = None
    stopped_by_time: list[int]
    errors: dict[str, str]

    def text(self) -> str:
        """``40.2 → 74.2, +34.0 [27.0, 40.6]`` with marks, ``error``, ``-``, or ``for text``."""
        if not self.seeds:
            return "error" if self.failed else "-" if self.missing else "for text"
        points = f"{self.start:.1f} → {self.end:.1f}, **{self.gain:+.1f}** [{self.low:+.1f}, {self.high:+.1f}]"
        asked = len(self.seeds) + len(self.missing) + len(self.failed)
        marks = f" ({len(self.seeds)} of {asked} seeds)" if len(self.seeds) < asked else ""
        marks += " (error)" if self.failed else ""
        return points + marks + (" †" if self.stopped_by_time else "")


def entry_of(task: str, algorithm: str, records: Records) -> Entry:
    """The field of ``algorithm`` on ``task``."""
    own = {cell.seed: record for cell, record in records.items() if (cell.task, cell.algorithm) == (task, algorithm)}
    failed = {seed: record["error"] for seed, record in own.items() if record is not None and "error" in record}
    done = {seed: record for seed, record in own.items() if record is not None and seed not in failed}
    entry = {
        "task": task,
        "algorithm": algorithm,
        "seeds": list(done),
        "missing": [seed for seed, record in own.items() if record is None],
        "failed": list(failed),
        "stopped_by_time": [seed for seed, record in done.items() if record["stopped_by"] == "time"],
        "errors": {str(seed): error for seed, error in failed.items()},
    }
    if not done:
        return Entry(**entry)
    runs = list(done.values())
    points = gain([record["start"] for record in runs], [record["end"] for record in runs])
    return Entry(
        **entry,
        start=100 * _mean(runs, "start_mean"),
        end=100 * _mean(runs, "end_mean"),
        gain=100 * points.mean,
        low=100 * points.low,
        high=100 * points.high,
        passes=_mean(runs, "passes"),
        optimizer_steps=_mean(runs, "optimizer_steps"),
        train_cpu_seconds=_mean(runs, "train_cpu_seconds"),
    )


def _mean(records: list[dict[str, Any]], key: str) -> float:
    return sum(record[key] for record in records) / len(records)


def results_of(tasks: dict[str, Task], algorithms: list[str], seeds: list[int], records: Records) -> dict[str, Any]:
    """Everything that the table and the curves show, as JSON values."""
    entries = [entry_of(task, algorithm, records) for algorithm in algorithms for task in tasks]
    known = [record for record in records.values() if record is not None]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cell_commits": sorted({record["commit"] or "unknown" for record in known}),
        "algorithms": algorithms,
        "seeds": seeds,
        "tasks": {name: asdict(task) for name, task in tasks.items()},
        "entries": [asdict(entry) for entry in entries],
        "curves": {
            cell.name: record["curve"] for cell, record in records.items() if record is not None and "curve" in record
        },
    }


def find_entry(results: dict[str, Any], algorithm: str, task: str) -> Entry:
    """The field of ``algorithm`` on ``task``.

    Raises:
        ValueError: there is none.
    """
    for entry in results["entries"]:
        if (entry["algorithm"], entry["task"]) == (algorithm, task):
            return Entry(**entry)
    raise ValueError(f"no entry of {algorithm!r} on {task!r}")


def learned(results: dict[str, Any], algorithm: str, task: str) -> bool:
    """Whether every run that was asked for was measured and the gain reaches the task's floor."""
    entry = find_entry(results, algorithm, task)
    complete = bool(entry.seeds) and not entry.missing and not entry.failed
    return complete and entry.gain >= results["tasks"][task]["floor"]


def markdown(results: dict[str, Any]) -> str:
    """The table of gains with its header, and that of steps, passes and seconds."""
    tasks, algorithms = list(results["tasks"]), results["algorithms"]
    budgets = "; ".join(f"{name} {own['budget']:,}" for name, own in results["tasks"].items())
    commits = ", ".join(results["cell_commits"]) or "none"
    entries = {name: [find_entry(results, name, task) for task in tasks] for name in algorithms}
    lines = [
        f"Benchmark of {results['date'][:10]}, commit {results['commit'] or 'unknown'} (cells: {commits}).",
        f"Budget in row-passes: {budgets}. Seeds {', '.join(map(str, results['seeds']))}.",
        "Held-out accuracy in % at temperature 1, before → after, **gain in points** [95 % bootstrap over seeds and "
        "prompts].",
        "",
        *_rows(tasks, {name: [entry.text() for entry in own] for name, own in entries.items()}),
        "",
        "Optimizer steps (thousands of row-passes, CPU seconds of training), means over seeds:",
        "",
        *_rows(tasks, {name: [_cost(entry) for entry in own] for name, own in entries.items()}),
    ]
    shown = [entry for own in entries.values() for entry in own]
    if any(entry.stopped_by_time for entry in shown):
        lines += [
            "",
            "† at least one run was ended by the clock before its budget was spent: not an equal comparison.",
        ]
    errors = [(entry, seed, text) for entry in shown for seed, text in entry.errors.items()]
    if errors:
        lines += ["", "Errors:", ""]
        lines += [
            f"* {own.task}, {own.algorithm}, seed {seed}: {' '.join(text.split())}" for own, seed, text in errors
        ]
    return "\n".join(lines) + "\n"


def _rows(tasks: list[str], rows: dict[str, list[str]]) -> list[str]:
    head = ["| algorithm | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    return head + [f"| `{name}` | " + " | ".join(texts) + " |" for name, texts in rows.items()]


def _cost(entry: Entry) -> str:
    if not entry.seeds:
        return "-"
    return f"{entry.optimizer_steps:.0f} ({entry.passes / 1000:.1f} k, {entry.train_cpu_seconds:.0f} s)"
