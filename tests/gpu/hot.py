"""The most expensive operations of a step of a rollout and of an update."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .cases import learner, text
from .job import Job
from .steps import Deadline, repeat, run_steps, synchronize


COUNT = 10
"""Operations in a table."""

STEPS = 2
"""Steps of a rollout that are looked at; what is made before the first one counts little."""


def hottest(work: Callable[[], Any], times: int, device: str) -> tuple[list[dict[str, Any]], float]:
    """The operations of ``work``, which does something ``times`` times: calls, ms and share of each; and all their seconds.

    Calls, ms and seconds are of one of the ``times``. Time is the device's own, of kernels that the operation launched.
    """
    cuda = device == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds) as recorded:
        work()
        synchronize(device)
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    # Kernels stand in the list once more under their own names; what launched them says more.
    events = [event for event in recorded.key_averages() if event.device_type == DeviceType.CPU]
    spent = sum(getattr(event, key) for event in events)
    events.sort(key=lambda event: getattr(event, key), reverse=True)
    rows = [
        {
            "name": event.key,
            "calls": event.count / times,
            "ms": getattr(event, key) / 1000 / times,
            "share": getattr(event, key) / (spent or 1.0),
        }
        for event in events[:COUNT]
    ]
    return rows, spent / 1e6 / times


def table(work: Callable[[], Any], times: int, job: Job) -> dict[str, Any]:
    """The operations, and how much of the unprofiled time the device is at work."""
    work()
    seconds = repeat(work, 1, job.deadline, job.device).seconds / times
    rows, busy = hottest(work, times, job.device)
    return {"operations": rows, "seconds": seconds, "busy_seconds": busy, "busy_share": busy / seconds}


def hot(job: Job) -> None:
    """Two steps of a rollout at T = 1 and one update with its old pass, through a LoRA, as ``bf16: true`` has them."""
    bench = job.adapted()
    rollout = text(bench, "rollout", temperature=1.0, cast=True).work
    job.found["left_out"] = []

    def steps() -> None:
        run_steps(bench.model, rollout, STEPS, Deadline(math.inf), job.device)

    for name, work, times in (("rollout step", steps, STEPS), ("update", learner(bench, "old pass"), 1)):
        if job.deadline.left <= 0:
            job.found["left_out"].append(name)
            continue
        job.found[name] = table(work, times, job)
        first = job.found[name]["operations"][0]
        job.tell(f"{name}: {first['name']} takes {100 * first['share']:.0f} %")
    bench.model.zero_grad(set_to_none=True)
