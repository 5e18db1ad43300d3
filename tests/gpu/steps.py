"""How much time is left, what differs between a GPU and a CPU, and timing a few steps of work that is too long as a whole."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..benchmarks.plain import Clock


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment ``at`` of ``time.monotonic()``, seconds."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """So many ``seconds`` from now."""
        return cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds until then, negative afterwards."""
        return self.at - time.monotonic()

    def fits(self, seconds: float) -> bool:
        """Whether work of so many ``seconds`` ends before it."""
        return seconds < self.left

    def within(self, seconds: float) -> Deadline:
        """The earlier one of this and ``seconds`` from now."""
        return Deadline(min(self.at, time.monotonic() + seconds))


def synchronize(device: str) -> None:
    """Waits until everything that was launched is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def forget(device: str) -> None:
    """Gives cached memory back, so that what comes next meets no fragments and its peak is its own."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: str) -> float:
    """GB of 10^9 bytes at most: allocated since ``forget`` on a GPU, resident since the process began elsewhere."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Enough(Exception):
    """As many steps as were wanted are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """``count`` steps took ``seconds``; ``whole`` where the work came to its end."""

    count: int
    seconds: float
    whole: bool

    @property
    def each(self) -> float:
        """Seconds a step."""
        return self.seconds / max(self.count, 1)


class StepClock(Clock):
    """Counts steps and stops the work at the beginning of one too many, or of one after ``deadline``.

    The first step is always made.
    """

    def __init__(self, most: int, deadline: Deadline, device: str) -> None:
        super().__init__()
        self.most, self.deadline, self.device = most, deadline, device
        self.count, self.start = 0, 0.0

    def tick(self) -> None:
        """A step begins."""
        if self.count == 0:
            synchronize(self.device)
            self.start = time.perf_counter()
        elif self.count == self.most or self.deadline.left <= 0:
            raise Enough
        self.count += 1

    def run(self, work: Callable[[], Any]) -> Steps:
        """``work``, which ticks at the beginning of each of its steps."""
        whole = True
        try:
            work()
        except Enough:
            whole = False
        synchronize(self.device)
        return Steps(count=self.count, seconds=time.perf_counter() - self.start, whole=whole)


def run_steps(model: nn.Module, work: Callable[[], Any], most: int, deadline: Deadline, device: str) -> Steps:
    """Up to ``most`` steps of ``work``; every forward of ``model`` begins one."""
    clock = StepClock(most, deadline, device)
    hook = model.register_forward_pre_hook(lambda module, inputs: clock.tick())
    try:
        return clock.run(work)
    finally:
        hook.remove()


def repeat(work: Callable[[], Any], most: int, deadline: Deadline, device: str) -> Steps:
    """``work`` up to ``most`` times, as long as one more fits; once in any case."""
    synchronize(device)
    start, count = time.perf_counter(), 0
    while count < most:
        work()
        synchronize(device)
        count += 1
        if not deadline.fits((time.perf_counter() - start) / count):
            break
    return Steps(count=count, seconds=time.perf_counter() - start, whole=True)
