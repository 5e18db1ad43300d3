"""Runs cells in processes of their own: one thread each, bounded in time, none left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any


ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PRELOADED = ["unigrpo.toy.benchmark.cells"]
"""Imported once, by the server that children are forked from: importing takes seconds, a cell under a minute."""

PATIENCE = 5.0
"""Seconds between asking a process to end and killing it."""


@dataclass(frozen=True, slots=True)
class Job:
    """A function with its arguments, all picklable, and where its process writes what it prints."""

    key: Any
    work: Callable[..., Any]
    arguments: tuple
    log: Path


def run_jobs(
    jobs: list[Job], workers: int, limit: float, on_done: Callable[[Any, str | None], None], preload: bool = True
) -> None:
    """Runs ``jobs`` in order, at most ``workers`` at a time.

    Args:
        limit: seconds after which a job is killed.
        on_done: ``on_done(key, problem)`` after each job; ``problem`` says why its process did not end by itself with
            status 0, else None.
        preload: import ``PRELOADED`` before the first fork.

    No process outlives this call, however it ends; after a kill of this process that cannot be caught, children end
    themselves.
    """
    context = _context(preload)
    waiting, running = list(reversed(jobs)), {}
    previous = _end_on_terminate()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop()
                process = context.Process(target=_child, args=(job.work, job.arguments, str(job.log)), daemon=True)
                process.start()
                running[process.sentinel] = (job, process, time.monotonic() + limit)
            soonest = min(deadline for _, _, deadline in running.values())
            wait(list(running), timeout=max(0.0, soonest - time.monotonic()))
            for sentinel, (job, process, deadline) in list(running.items()):
                problem = _ended(process, deadline, limit)
                if problem != RUNNING:
                    del running[sentinel]
                    on_done(job.key, problem)
    finally:
        _stop(*(process for _, process, _ in running.values()))
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


RUNNING = "running"


def _ended(process: Any, deadline: float, limit: float) -> str | None:
    """None for a process that ended well, ``RUNNING``, or what was wrong; one past its deadline is stopped."""
    if process.exitcode is None and time.monotonic() < deadline:
        return RUNNING
    if process.exitcode is None:
        _stop(process)
        return f"killed after {limit:.0f} s"
    status, _ = process.exitcode, process.join()
    if status == 0:
        return None
    return f"the process ended with status {status}" if status > 0 else f"the process was killed by signal {-status}"


def _stop(*processes: Any) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            process.join()


def _context(preload: bool) -> Any:
    """Processes forked from a server with one thread where the system has it, else fresh ones."""
    os.environ.update(ONE_THREAD)
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED if preload else [])
    return context


def _end_on_terminate() -> Any:
    """SIGTERM ends this process as Ctrl-C does, by way of ``finally``; returns the handler before."""
    if threading.current_thread() is not threading.main_thread():
        return None

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    return signal.signal(signal.SIGTERM, end)


def _child(work: Callable[..., Any], arguments: tuple, log: str) -> None:
    # Ctrl-C reaches the whole group; the parent alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_follow_parent, daemon=True).start()
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # A server that another part of the parent started has its own environment, and perhaps a torch with more threads.
    os.environ.update(ONE_THREAD)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    work(*arguments)


def _follow_parent() -> None:
    """Ends this process when the one that started it is gone."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
