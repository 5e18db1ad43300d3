"""Tokens and pictures a second of ours and of the plain implementation, on the same weights in the same run."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from ..benchmarks.device import Loads, update_work
from ..benchmarks.flops import FlopMeter
from ..benchmarks.measure import environment
from ..benchmarks.mid import Bench
from .cases import Rollout, adapted_rollouts, rollouts
from .deadline import Deadline
from .device import forget, peak_gb
from .job import Job, short_error
from .memory import memory_lines
from .plain_side import plain_update
from .steps import StepClock, Steps, repeat, run_steps


WARM = 2
"""Steps before the clock starts: libraries choose kernels and allocators fill."""

UPDATES = 5
"""Repetitions of an update, where they fit."""

ROLLOUT_SHARE = 0.6
"""Of the stage's time, for rollouts; what is left is for updates and memory."""


def described(steps: Steps, case: Rollout) -> dict[str, Any]:
    """Figures of one side; the whole schedule's rate follows from the seconds of a step."""
    seconds = steps.seconds if steps.whole else steps.each * case.steps
    return {
        "seconds_a_step": steps.each,
        "steps_measured": steps.count,
        "seconds": seconds,
        "rate": case.amount / seconds,
        "extrapolated": not steps.whole,
    }


def ours(bench: Bench, case: Rollout, most: int, deadline: Deadline, job: Job) -> dict[str, Any]:
    """Our side in up to ``most`` steps, with memory and, where they are known, operations."""
    forget(job.device)
    meter = FlopMeter(model=bench.model)
    with meter.counting():
        steps = run_steps(bench.model, case.work, most, deadline, job.device)
    found = {**described(steps, case), "peak_gb": peak_gb(job.device), "tflops": None, "share": None}
    if case.counted:
        found["tflops"] = meter.total() / steps.seconds / 1e12
        found["share"] = found["tflops"] / job.peak_tflops
    return found


def plain(case: Rollout, most: int, deadline: Deadline, job: Job) -> dict[str, Any]:
    """The plain side in up to ``most`` steps."""
    forget(job.device)
    clock = StepClock(most, deadline, job.device)
    steps = clock.run(lambda: case.plain(clock.tick))
    return {**described(steps, case), "peak_gb": peak_gb(job.device)}


def with_ratio(line: dict[str, Any], beside: dict[str, Any] | None) -> None:
    """How many times faster ours is than the plain side, where there is one."""
    line["ratio"] = None if beside is None else line["rate"] / beside["rate"]


def first_look(bench: Bench, case: Rollout, deadline: Deadline, job: Job) -> dict[str, Any]:
    """Both sides in as many steps as stand for the whole, fewer where time is short."""
    run_steps(bench.model, case.work, WARM, deadline, job.device)
    line = {"name": case.name, "unit": case.unit, "steps": case.steps, "note": case.note}
    line |= ours(bench, case, case.block, deadline, job)
    if case.plain is not None and deadline.left > 0:
        # One step warms it: its rooms for whole logits are taken and its kernels chosen.
        plain(case, 1, deadline, job)
        line["plain"] = plain(case, case.block, deadline, job)
    with_ratio(line, line.get("plain"))
    return line


def attempt(job: Job, name: str, deadline: Deadline, work: Callable[[], None]) -> None:
    """``work``, unless time is over; what it raises is kept with its name and does not reach what comes next."""
    if deadline.left <= 0:
        job.found["left_out"].append(name)
        job.tell(f"{name}: left out, no time")
        return
    try:
        work()
    except Exception as error:
        job.found["failed"].append({"name": name, "error": short_error(error)})
        job.tell(f"{name}: failed, {type(error).__name__}")
        traceback.clear_frames(error.__traceback__)
    forget(job.device)


def rollout_lines(bench: Bench, loads: Loads, deadline: Deadline, job: Job) -> None:
    """A few steps of every rollout, then whole ones while they fit."""
    cases, lines = rollouts(bench, loads, job.device), job.found["lines"]
    for number, case in enumerate(cases):
        own = deadline.within(deadline.left / (len(cases) - number))

        def look(case: Rollout = case, own: Deadline = own) -> None:
            line = first_look(bench, case, own, job)
            if case.plain is None and lines and "plain" in lines[0]:
                with_ratio(line, lines[0]["plain"])
            lines.append(line)
            job.tell(told(line))

        attempt(job, case.name, own, look)
    for line in list(lines):
        case = next(case for case in cases if case.name == line["name"])
        if not line["extrapolated"] or not deadline.fits(1.1 * line["seconds"]):
            continue

        def whole(case: Rollout = case, line: dict[str, Any] = line) -> None:
            line |= ours(bench, case, case.steps + 1, deadline, job)
            with_ratio(line, line.get("plain") or lines[0].get("plain"))
            job.tell(told(line))

        attempt(job, f"{case.name}, whole", deadline, whole)


def update_line(bench: Bench, loads: Loads, old_pass: bool, deadline: Deadline, job: Job) -> dict[str, Any]:
    """An update of the adapter: seconds each, operations, memory."""
    learn, amount, unit = update_work(bench, loads, job.device, old_pass)
    learn(1)
    forget(job.device)
    meter = FlopMeter(model=bench.model)
    with meter.counting():
        timed = repeat(lambda: learn(1), UPDATES, deadline, job.device)
    tflops = meter.total() / timed.seconds / 1e12
    return {
        "name": "update, LoRA, old pass" if old_pass else "update, LoRA, no old pass",
        "unit": unit,
        "steps": 1,
        "note": "",
        "seconds_a_step": timed.each,
        "steps_measured": timed.count,
        "seconds": timed.each,
        "rate": amount / timed.each,
        "extrapolated": False,
        "peak_gb": peak_gb(job.device),
        "tflops": tflops,
        "share": tflops / job.peak_tflops,
        "ratio": None,
    }


def update_lines(bench: Bench, loads: Loads, deadline: Deadline, job: Job) -> None:
    """Updates of a LoRA with the old pass and without, beside the plain one, which always makes it."""
    lines, own, amount = job.found["lines"], [], loads.rows * loads.update_length
    for name, old_pass in {"update, LoRA, old pass": True, "update, LoRA, no old pass": False}.items():

        def learn(old_pass: bool = old_pass) -> None:
            line = update_line(bench, loads, old_pass, deadline.within(deadline.left / 4), job)
            own.append(line)
            lines.append(line)
            job.tell(told(line))

        attempt(job, name, deadline, learn)

    def beside() -> None:
        work = plain_update(bench, loads, job.device)
        work()
        forget(job.device)
        timed = repeat(work, UPDATES, deadline.within(deadline.left / 4), job.device)
        found = {"seconds_a_step": timed.each, "steps_measured": timed.count, "seconds": timed.each}
        found |= {"rate": amount / timed.each, "extrapolated": False, "peak_gb": peak_gb(job.device)}
        for line in own:
            line["plain"] = found
            with_ratio(line, found)
        job.tell(f"update, plain: {timed.each:.3f} s")

    attempt(job, "update, plain", deadline, beside)


def adapter_lines(bench: Bench, loads: Loads, deadline: Deadline, job: Job) -> None:
    """A few steps of a rollout through the adapter, which is what a run with LoRA does."""
    for case in adapted_rollouts(bench, loads, job.device):

        def look(case: Rollout = case) -> None:
            line = first_look(bench, case, deadline.within(deadline.left / 4), job)
            job.found["lines"].append(line)
            job.tell(told(line))

        attempt(job, case.name, deadline, look)


def told(line: dict[str, Any]) -> str:
    """A line of progress."""
    ratio = "" if line["ratio"] is None else f", x{line['ratio']:.2f} of plain"
    return f"{line['name']}: {line['rate']:.4g} {line['unit']}, {line['seconds_a_step']:.4f} s a step{ratio}"


def speed(job: Job) -> None:
    """Rollouts of the whole model, then updates, memory and an adapter."""
    job.found |= {"lines": [], "memory": [], "left_out": [], "failed": [], "peak_tflops": job.peak_tflops}
    bench = job.bench()
    job.found["environment"] = environment(bench.model, bench.size)
    job.tell(f"{bench.size} model: {job.found['environment']['parameters']:,} parameters on the device")
    rollout_lines(bench, job.loads, job.deadline.within(ROLLOUT_SHARE * job.deadline.left), job)
    bench = job.adapted()
    update_lines(bench, job.loads, job.deadline, job)
    adapter_lines(bench, job.loads, job.deadline, job)

    def add(line: dict[str, Any]) -> None:
        job.found["memory"].append(line)
        job.tell(f"memory, {line['what']}: {line.get('peak_gb', float('nan')):.1f} GB")

    attempt(job, "memory", job.deadline, lambda: memory_lines(bench, job.loads, job.device, job.deadline, add))
    bench.model.zero_grad(set_to_none=True)
