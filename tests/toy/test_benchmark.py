"""``unigrpo benchmark``: its currency, its records, its processes and its table."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from unigrpo.config.task import TaskSettings
from unigrpo.runs.cli import main
from unigrpo.toy.benchmark import command
from unigrpo.toy.benchmark.budget import Budget, PassCounter
from unigrpo.toy.benchmark.cells import Cell, cells_of, digest, load_record, run_cell, save_record, settings_of
from unigrpo.toy.benchmark.command import benchmark
from unigrpo.toy.benchmark.curves import mean_curve
from unigrpo.toy.benchmark.pool import Job, run_jobs
from unigrpo.toy.benchmark.table import find_entry, gain, learned, markdown, results_of
from unigrpo.toy.benchmark.tasks import RESERVED, TASKS, chosen_tasks

from ..support import ROOT
from ..support.benchmark_jobs import fail, linger, spell
from ..support.tiny import tiny_model


SMALL = ["budget=200", "held_out=6", "per_device_train_batch_size=8", "num_generations=4"]
CELL = Cell("arithmetic", "unigrpo", 0)


def small(task: str = "arithmetic", *more: str):
    return chosen_tasks(task, [f"{task}.{change}" for change in (*SMALL, *more)])[task]


def record_of(cell: Cell, task, start=(0, 0, 1, 0), end=(1, 0, 1, 1), **more) -> dict:
    settings = settings_of(cell, task)
    measured = {
        "passes": 210,
        "optimizer_steps": 4,
        "train_seconds": 2.0,
        "train_cpu_seconds": 2.0,
        "stopped_by": "budget",
        "start": list(start),
        "end": list(end),
        "start_mean": sum(start) / len(start),
        "end_mean": sum(end) / len(end),
        "curve": [{"step": 0, "passes": 0, "reward": 0.5}, {"step": 2, "passes": 100, "reward": 1.5}],
    }
    header = {"cell": cell.name, "digest": digest(settings), "settings": settings, "commit": "abc"}
    return {**header, **measured, **more}


# ---- the currency ----


def test_a_row_costs_one_pass_and_three_with_its_gradient():
    model, counter = tiny_model(), PassCounter()
    ids = torch.zeros(5, 7, dtype=torch.int64)
    with counter.counting(model):
        with torch.no_grad():
            model(input_ids=ids)
        assert counter.passes == 5
        model(ids)
        assert counter.passes == 5 + 15
        tiny_model().requires_grad_(False)(input_ids=ids[:2])
        assert counter.passes == 5 + 15 + 2
    model(input_ids=ids)
    assert counter.passes == 22


def test_a_trainers_passes_are_those_of_its_rollout_old_reference_and_updates(make_trainer):
    def passes(beta: float) -> int:
        counter = PassCounter()
        trainer = make_trainer(max_steps=2, gradient_accumulation_steps=4, beta=beta)
        trainer._starts = False  # A look at the first window, once a run.
        with counter.counting(trainer.model):
            trainer.train()
        return counter.passes

    rows, steps, updates = 16, 6, 2
    alone, with_reference = passes(0.0), passes(0.04)
    # The first update needs no old pass.
    assert alone == rows * steps + rows * (updates - 1) + 3 * rows * updates
    # One pass an update, and a few rows of the KL that is only logged.
    assert rows * updates <= with_reference - alone < rows * (updates + 1)


def test_training_ends_at_the_first_step_that_spends_the_budget(make_trainer):
    counter = PassCounter()
    trainer = make_trainer(max_steps=1000)
    budget = Budget(counter, 1, seconds=100.0)
    trainer.add_callback(budget)
    with counter.counting(trainer.model):
        trainer.train()
    assert trainer.state.global_step == 1 and budget.stopped_by == "budget"
    assert budget.curve == [{"step": 0, "passes": 0, "reward": pytest.approx(budget.curve[0]["reward"])}]


def test_training_ends_when_its_time_is_up(make_trainer):
    trainer = make_trainer(max_steps=1000)
    budget = Budget(PassCounter(), 10**9, seconds=0.0)
    trainer.add_callback(budget)
    trainer.train()
    assert trainer.state.global_step == 1 and budget.stopped_by == "time"


# ---- what differs between cells ----


@pytest.mark.parametrize("name", TASKS)
def test_cells_of_a_task_differ_in_algorithm_and_seed_only(name):
    one, other = (TASKS[name].recipe_of("unigrpo", seed) for seed in (0, 1))
    assert one.config == {**other.config, "seed": 0}
    # What belongs to an algorithm is left to it.
    keys = {item.name for item in fields(TaskSettings)} | {"num_iterations", "scale_rewards", "loss_type"}
    sampling = ("steps", "block_length", "temperature", "sampler", "guidance_scale", "max_completion_length")
    measuring = ("eval_sampler", "eval_temperature", "eval_denoising_steps")
    assert {key for key in one.config if key in keys} <= {*sampling, *measuring}
    assert one.config["eval_sampler"] and one.config["eval_temperature"] == 1.0
    assert one.config["lr_scheduler_type"] == "constant"


def test_a_digest_changes_with_everything_that_is_measured():
    base = digest(settings_of(CELL, small()))
    assert base == digest(settings_of(CELL, small()))
    for changed in ("budget=300", "held_out=7", "learning_rate=0.1", "seconds=3"):
        assert digest(settings_of(CELL, small("arithmetic", changed))) != base
    assert digest(settings_of(Cell("arithmetic", "unigrpo", 1), small())) != base


# ---- names and overrides ----


@pytest.mark.parametrize(
    "words, message",
    [
        (["--tasks", "arithmetik"], "did you mean 'arithmetic'"),
        (["--algorithms", "unigrp"], "did you mean 'unigrpo'"),
        (["--seeds", "0,x"], "must be integers"),
        (["arithmetic.learning_rat=1"], "did you mean 'learning_rate'"),
        (["arithmetik.budget=1"], "did you mean 'arithmetic'"),
        (["arithmetic.budget=1.5"], "must be int above 0"),
        (["budget=1"], "TASK.KEY=VALUE"),
        *[([f"arithmetic.{key}=1"], "cells differ in") for key in RESERVED],
    ],
)
def test_a_mistake_is_an_error_that_names_the_cure(words, message, capsys, tmp_path):
    assert main(["benchmark", "--output-dir", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- a cell ----


def test_a_cell_is_measured_and_recorded(tmp_path):
    task = small()
    run_cell(CELL, task, tmp_path)
    record = load_record(CELL, task, tmp_path)
    assert "error" not in record, record["traceback"]
    assert record["passes"] >= 200 and record["stopped_by"] == "budget"
    assert record["optimizer_steps"] >= 1 and record["train_seconds"] > 0
    assert len(record["start"]) == len(record["end"]) == 6
    assert set(record["start"] + record["end"]) <= {0, 1}
    assert record["curve"][0]["passes"] == 0 and record["curve"][0]["reward"] >= 0
    assert record["versions"]["torch"] == version("torch") and record["date"]
    assert os.listdir(tmp_path / "cells") == ["arithmetic-unigrpo-0.json"]
    # Other settings ask for another measurement.
    assert load_record(CELL, small("arithmetic", "budget=201"), tmp_path) is None


def test_a_cell_that_fails_keeps_its_error(tmp_path):
    task = small("arithmetic", "rewards=[{name: no_such_reward}]")
    run_cell(CELL, task, tmp_path)
    record = load_record(CELL, task, tmp_path)
    assert "no_such_reward" in record["error"] and "Traceback" in record["traceback"]


def test_a_torn_record_is_a_missing_one(tmp_path):
    save_record(CELL, tmp_path, record_of(CELL, small()))
    assert load_record(CELL, small(), tmp_path) is not None
    path = CELL.path(tmp_path)
    path.write_text(path.read_text()[:100])
    assert load_record(CELL, small(), tmp_path) is None


# ---- processes ----


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for yet does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in ("Z", "X")


@pytest.mark.processes
def test_jobs_run_on_one_thread_each_and_do_not_outlive_their_time(tmp_path, monkeypatch):
    # A server of another part of this process, started with an environment of its own, forks these jobs too.
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    server = multiprocessing.get_context("forkserver")
    server.Process(target=print).start()
    jobs = [
        Job("well", spell, (tmp_path / "well", "done"), tmp_path / "logs" / "well"),
        Job("ill", fail, (tmp_path / "ill",), tmp_path / "logs" / "ill"),
    ]
    late = Job("late", linger, (tmp_path / "late",), tmp_path / "logs" / "late")
    ended: dict[str, str | None] = {}
    # On a busy machine a process may need seconds to begin: those that end by themselves have a minute.
    run_jobs(jobs, 2, 60.0, ended.__setitem__, preload=False)
    run_jobs([late], 1, 8.0, ended.__setitem__, preload=False)
    assert ended == {"well": None, "ill": "the process ended with status 3", "late": "killed after 8 s"}
    assert (tmp_path / "well").read_text() == "done 1"
    assert not alive(int((tmp_path / "late").read_text()))


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_no_process_is_left_behind(name, tmp_path):
    path = tmp_path / "pid"
    command = [sys.executable, "-m", "tests.support.benchmark_jobs", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(getattr(signal, name))
    process.wait(30)
    deadline = time.monotonic() + 10
    while alive(int(path.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.1)


# ---- the table ----


def test_a_gain_has_an_interval_over_seeds_and_prompts():
    one = gain([[0, 0, 0, 0]], [[1, 1, 1, 1]])
    assert (one.mean, one.low, one.high, one.count) == (1.0, 1.0, 1.0, 4)
    start = [[0, 1] * 50] * 3
    alike, apart = gain(start, [[1, 1] * 50] * 3), gain(start, [[1, 1] * 50, [0, 1] * 50, [1, 1] * 50])
    assert alike.mean == pytest.approx(0.5) and apart.mean == pytest.approx(1 / 3)
    # The prompts are the same ones: equal seeds narrow nothing.
    assert gain(start[:1], [[1, 1] * 50]).low == pytest.approx(alike.low, abs=0.03)
    # Seeds that disagree widen it.
    assert apart.high - apart.low > 2 * (alike.high - alike.low)
    assert gain(start, [[1, 1] * 50] * 3) == alike
    with pytest.raises(ValueError, match="no outcomes"):
        gain([], [])


def test_the_table_shows_measured_failed_and_missing_cells():
    tasks = {"arithmetic": small(), "shapes": small("shapes")}
    cells = cells_of(list(tasks), ["unigrpo"], [0, 1])
    records = dict.fromkeys(cells)
    records[cells[0]] = record_of(cells[0], tasks["arithmetic"], stopped_by="time")
    results = results_of(tasks, ["unigrpo"], [0, 1], records)
    text = markdown(results)
    assert "25.0 → 75.0, **+50.0**" in text and "(1 of 2 seeds) †" in text and "| - |" in text
    assert "4 (0.2 k, 2 s)" in text and "200" in text
    assert not learned(results, "unigrpo", "arithmetic")
    records[Cell("arithmetic", "unigrpo", 1)] = record_of(Cell("arithmetic", "unigrpo", 1), tasks["arithmetic"])
    for seed in (0, 1):
        records[Cell("shapes", "unigrpo", seed)] = {"error": "ValueError: does\nnot fit", "commit": None}
    results = json.loads(json.dumps(results_of(tasks, ["unigrpo"], [0, 1], records)))
    assert learned(results, "unigrpo", "arithmetic") and not learned(results, "unigrpo", "shapes")
    assert find_entry(results, "unigrpo", "shapes").text() == "error"
    assert "shapes, unigrpo, seed 1: ValueError: does not fit" in markdown(results)
    with pytest.raises(ValueError, match="no entry"):
        find_entry(results, "unigrpo", "sudoku")


def test_curves_are_averaged_as_far_as_every_seed_goes():
    short = [{"step": 0, "passes": 0, "reward": 1.0}, {"step": 1, "passes": 10, "reward": 1.0}]
    long = [{"step": 0, "passes": 0, "reward": 3.0}, {"step": 1, "passes": 40, "reward": 3.0}]
    grid, values = mean_curve([short, long])
    assert grid[-1] == 10 and set(values) == {2.0}


def test_only_what_is_missing_runs(tmp_path, monkeypatch, capsys):
    ran = []

    def run(jobs, workers, limit, on_done):
        for job in jobs:
            ran.append(job.key)
            cell, task, out = job.arguments
            if cell.seed == 1 and len(ran) < 3:
                on_done(cell, "killed after 1 s")
                continue
            save_record(cell, out, record_of(cell, task))
            on_done(cell, None)

    monkeypatch.setattr(command, "run_jobs", run)
    words = {"algorithms": "unigrpo", "tasks": "arithmetic", "seeds": "0,1", "output_dir": str(tmp_path)}
    results = benchmark(**words)
    assert [cell.seed for cell in ran] == [0, 1]
    assert results["entries"][0]["failed"] == [1]
    assert "killed after 1 s" in (tmp_path / "table.md").read_text()
    results = benchmark(**words)
    # The failed cell is tried again, the other one kept.
    assert [cell.seed for cell in ran] == [0, 1, 1] and results["entries"][0]["seeds"] == [0, 1]
    results = benchmark(**words, overrides=["arithmetic.budget=7"], table_only=True)
    assert len(ran) == 3 and results["entries"][0]["missing"] == [0, 1]
    assert "2 of 2 cells were measured with other settings" in capsys.readouterr().out
    assert (tmp_path / "curves.png").stat().st_size > 1000


# ---- does the default algorithm learn at the shipped budgets? ----


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", ["arithmetic", "shapes"])
def test_unigrpo_learns_within_the_budget(task, tmp_path):
    results = benchmark(algorithms="unigrpo", tasks=task, seeds="0", output_dir=str(tmp_path))
    entry = find_entry(results, "unigrpo", task)
    print(f"benchmark unigrpo, {task}, seed 0: {entry.text()} in {entry.train_cpu_seconds} s")
    assert learned(results, "unigrpo", task)
