"""Tokens and pictures a second of ours and of the plain implementation, on the same weights in the same run."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from ..benchmarks.bench import Bench
from ..benchmarks.measure import environment
from .cases import Rollout, adapted_rollouts, learner, rollouts
from .flops import FlopMeter
from .job import Job, short_error
from .memory import memory_lines
from .steps import Deadline, StepClock, Steps, forget, peak_gb, repeat, run_steps


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
    steps = clock.run(lambda: case.plain(clock=clock))
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


def rollout_lines(bench: Bench, deadline: Deadline, job: Job) -> None:
    """A few steps of every rollout, then whole ones while they fit."""
    cases, lines = rollouts(bench), job.found["lines"]
    for number, case in enumerate(cases):
        own = deadline.within(deadline.left / (len(cases) - number))

        def look(case: Rollout = case, own: Deadline = own) -> None:
            line = first_look(bench, case, own, job)
            if case.plain is None and lines and "plain" in lines[0]:
                with_ratio(line, lines[0]["plain"])
            add(job, line)

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


def repeated(bench: Bench, kind: str, deadline: Deadline, job: Job) -> dict[str, Any]:
    """Figures of an update of what is trained, and its operations where it is ours."""
    learn = learner(bench, kind)
    learn()
    forget(job.device)
    meter = FlopMeter(model=bench.model)
    with meter.counting():
        timed = repeat(learn, UPDATES, deadline.within(deadline.left / 4), job.device)
    found = {"seconds_a_step": timed.each, "steps_measured": timed.count, "seconds": timed.each}
    found |= {"rate": bench.sizes.update_rows * bench.sizes.update_length / timed.each, "extrapolated": False}
    found |= {"peak_gb": peak_gb(job.device)}
    if kind != "plain":
        found["tflops"] = meter.total() / timed.seconds / 1e12
        found["share"] = found["tflops"] / job.peak_tflops
    return found


def update_lines(bench: Bench, kinds: dict[str, str], deadline: Deadline, job: Job) -> None:
    """Updates by name, beside the plain one where it is among them; that one always makes an old pass."""
    own: list[dict[str, Any]] = []
    for name, kind in kinds.items():

        def learn(name: str = name, kind: str = kind) -> None:
            found = repeated(bench, kind, deadline, job)
            if kind != "plain":
                own.append({"name": name, "unit": "tokens/s", "steps": 1, "note": "", **found, "ratio": None})
                add(job, own[-1])
                return
            for line in own:
                line["plain"] = found
                with_ratio(line, found)
            job.tell(f"{name}: {found['seconds']:.3f} s")

        attempt(job, name, deadline, learn)
    bench.model.zero_grad(set_to_none=True)


def adapter_lines(bench: Bench, deadline: Deadline, job: Job) -> None:
    """A few steps of a rollout through the adapter, which is what a run with LoRA does."""
    for case in adapted_rollouts(bench):

        def look(case: Rollout = case) -> None:
            add(job, first_look(bench, case, deadline.within(deadline.left / 4), job))

        attempt(job, case.name, deadline, look)


def add(job: Job, line: dict[str, Any]) -> None:
    """A line of the table, and of progress."""
    job.found["lines"].append(line)
    job.tell(told(line))


def told(line: dict[str, Any]) -> str:
    """A line of progress."""
    ratio = "" if line["ratio"] is None else f", x{line['ratio']:.2f} of plain"
    return f"{line['name']}: {line['rate']:.4g} {line['unit']}, {line['seconds_a_step']:.4f} s a step{ratio}"


def speed(job: Job) -> None:
    """Rollouts and an update of the whole model, then updates, memory and rollouts of an adapter."""
    job.found |= {"lines": [], "memory": [], "left_out": [], "failed": [], "peak_tflops": job.peak_tflops}
    bench = job.bench()
    job.found["environment"] = environment(bench.model, bench.size)
    job.tell(f"{bench.size} model: {job.found['environment']['parameters']:,} parameters on the device")
    rollout_lines(bench, job.deadline.within(ROLLOUT_SHARE * job.deadline.left), job)
    update_lines(bench, {"update, full, old pass": "old pass"}, job.deadline, job)
    bench = job.adapted()
    kinds = {"update, LoRA, old pass": "old pass", "update, LoRA, no old pass": "old = new", "update, plain": "plain"}
    update_lines(bench, kinds, job.deadline, job)
    adapter_lines(bench, job.deadline, job)

    def add_memory(line: dict[str, Any]) -> None:
        job.found["memory"].append(line)
        job.tell(f"memory, {line['what']}: {line.get('peak_gb', float('nan')):.1f} GB")

    attempt(job, "memory", job.deadline, lambda: memory_lines(bench, job.deadline, add_memory))
    bench.model.zero_grad(set_to_none=True)
