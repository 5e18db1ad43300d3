"""The command: run what is missing, then leave the table, the picture and the numbers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ...terminal import say
from .cells import Cell, cells_of, header_of, load_record, run_cell, save_record
from .curves import draw_curves
from .pool import Job, run_jobs
from .table import Records, markdown, results_of
from .tasks import Task, chosen_algorithms, chosen_seeds, chosen_tasks


ALLOWANCE = 180.0
"""Seconds beside a task's own cap after which a cell is killed: loading, two evaluations, a slow last step."""


def benchmark(
    *,
    algorithms: str | None = None,
    tasks: str | None = None,
    seeds: str = "0,1,2",
    output_dir: str = "runs/benchmark",
    jobs: int = 1,
    table_only: bool = False,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """``unigrpo benchmark``: returns what it writes to ``results.json``.

    Cells that were measured with the same settings are kept; failed ones are tried again.

    Raises:
        ValueError: an unknown name or key, or fewer than one job; nothing has run then.
    """
    chosen, names, numbers = chosen_tasks(tasks, overrides or []), chosen_algorithms(algorithms), chosen_seeds(seeds)
    if jobs < 1:
        raise ValueError(f"jobs={jobs} must be at least 1")
    out = Path(output_dir)
    cells = cells_of(list(chosen), names, numbers)
    records = {cell: load_record(cell, chosen[cell.task], out) for cell in cells}
    stale = sum(record is None and cell.path(out).exists() for cell, record in records.items())
    if stale:
        say(f"{stale} of {len(records)} cells were measured with other settings and are left out")
    out.mkdir(parents=True, exist_ok=True)
    try:
        if not table_only:
            run_missing(records, chosen, out, jobs)
    finally:
        # After Ctrl-C too: what was measured so far is shown, with the rest missing.
        results = report(chosen, names, numbers, records, out)
    return results


def run_missing(records: Records, tasks: dict[str, Task], out: Path, jobs: int) -> None:
    """Runs the cells without a measurement and puts their records into ``records``, a line for each."""
    todo = [cell for cell, record in records.items() if record is None or "error" in record]
    kept = len(records) - len(todo)
    if kept:
        say(f"{kept} of {len(records)} cells were measured before")
    if not todo:
        return
    began, finished = time.monotonic(), 0

    def done(cell: Cell, problem: str | None) -> None:
        nonlocal finished
        finished += 1
        if problem is not None:
            save_record(cell, out, {**header_of(cell, tasks[cell.task]), "error": problem})
        records[cell] = load_record(cell, tasks[cell.task], out)
        left = (time.monotonic() - began) / finished * (len(todo) - finished)
        say(f"[{kept + finished}/{len(records)}] {describe(cell, records[cell])}; about {_duration(left)} left")

    work = [Job(cell, run_cell, (cell, tasks[cell.task], out), out / "logs" / f"{cell.name}.log") for cell in todo]
    run_jobs(work, jobs, max(task.seconds for task in tasks.values()) + ALLOWANCE, done)


def describe(cell: Cell, record: dict[str, Any] | None) -> str:
    """A finished cell in one line."""
    name = f"{cell.task} {cell.algorithm} seed {cell.seed}"
    if record is None or "error" in record:
        return f"{name}: error: {' '.join((record or {}).get('error', 'no record was written').split())}"
    gains = f"{100 * record['start_mean']:.1f} % → {100 * record['end_mean']:.1f} %"
    cost = f"{record['passes']} row-passes, {record['optimizer_steps']} steps, {record['train_seconds']:.0f} s"
    return f"{name}: {gains} ({cost}, stopped by {record['stopped_by']})"


def report(
    tasks: dict[str, Task], algorithms: list[str], seeds: list[int], records: Records, out: Path
) -> dict[str, Any]:
    """Writes ``results.json``, ``table.md`` and ``curves.png``, and prints the table."""
    results = results_of(tasks, algorithms, seeds, records)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    table = markdown(results)
    (out / "table.md").write_text(table)
    drawn = draw_curves(results, out / "curves.png")
    say(f"\n{table}\nwrote table.md, results.json{' and curves.png' if drawn else ''} to {out}")
    return results


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
