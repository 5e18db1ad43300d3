"""The stages in their order, each within its time, whatever the others do."""

from __future__ import annotations

import argparse
import os
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.utils import logging as transformers_logging

from .hot import hot
from .job import Job, short_error
from .laws import AGREEMENT
from .laws_training import TRAINING_LAWS
from .quickstart import quickstart
from .report import Report
from .speed import speed
from .steps import Deadline


CLOSING = 5.0
"""Seconds at the end that no stage may use, of a run of minutes."""

CUT = 2.0
"""Seconds before the end at which a stage that hangs is cut off."""


def laws(job: Job) -> None:
    """Every law once, as long as there is time; one that raises does not hold."""
    job.found |= {"laws": [], "left_out": []}
    for name, law in {**AGREEMENT, **TRAINING_LAWS}.items():
        if job.deadline.left <= 0:
            job.found["left_out"].append(name)
            continue
        started, error = time.perf_counter(), None
        try:
            measured, bound = law(job.device)
        except Exception as raised:
            measured, bound, error = float("nan"), float("nan"), short_error(raised)
        found = {"name": name, "passed": measured <= bound, "measured": measured, "bound": bound}
        job.found["laws"].append({**found, "seconds": time.perf_counter() - started, "error": error})
        job.tell(f"{'holds' if found['passed'] else 'FAILS'}: {name} {measured:.3g} (at most {bound:.3g})")


@dataclass(frozen=True, slots=True)
class Stage:
    """``work`` in at most ``seconds`` or ``share`` of the whole time; ``least`` seconds, or it is not begun."""

    name: str
    work: Callable[[Job], None]
    seconds: float
    share: float
    least: float


STAGES = (
    Stage("laws", laws, 60.0, 0.34, 5.0),
    Stage("speed", speed, float("inf"), 1.0, 10.0),
    Stage("hot", hot, 30.0, 0.08, 5.0),
    Stage("quickstart", quickstart, 60.0, 0.16, 10.0),
)


def allowance(number: int, total: float) -> tuple[float, float]:
    """Seconds that a stage may take of ``total``, and seconds that later ones keep for themselves."""
    longest = [min(stage.seconds, stage.share * total) for stage in STAGES]
    return longest[number], sum(longest[number + 1 :]) if number > 0 else 0.0


def run_stages(options: argparse.Namespace, started: float) -> int:
    """All of them; the exit status."""
    quiet()
    total = 60.0 * options.minutes
    end = Deadline(started + total - min(CLOSING, 0.05 * total))
    report = Report(options, started)
    job = Job(options.size, options.device, options.peak_tflops, report.tell)
    guard = threading.Timer(max(started + total - min(CUT, 0.02 * total) - time.monotonic(), 0.1), cut_off, [report])
    guard.daemon = True
    guard.start()
    for number, stage in enumerate(STAGES):
        longest, kept = allowance(number, total)
        job.deadline = Deadline(end.at - kept).within(longest)
        job.found = report.begin(stage.name)
        if job.deadline.left < stage.least:
            left = max(job.deadline.left, 0)
            report.end(skipped=f"it needs {stage.least:.0f} seconds at least, and {left:.0f} were left for it")
            continue
        report.tell(f"up to {job.deadline.left:.0f} s")
        try:
            stage.work(job)
            report.end()
        except Exception as error:
            report.end(error=short_error(error))
    guard.cancel()
    return report.finish()


def cut_off(report: Report) -> None:
    """Leaves the files as they are and ends the process: nothing else stops a call that hangs in a driver."""
    try:
        report.cut()
    finally:
        os._exit(1)


def quiet() -> None:
    """One line of progress a measurement, and nothing between them."""
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not torch.cuda.is_available():
        # One thread, as the tests have it: two runs beside each other do not fight for processors.
        torch.set_num_threads(1)
