"""Timing a few steps of work that would take too long as a whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from .deadline import Deadline
from .device import synchronize


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


class StepClock:
    """Counts steps and stops the work at the beginning of one too many, or of one after ``deadline``.

    The first step is always made.
    """

    def __init__(self, most: int, deadline: Deadline, device: str) -> None:
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


@contextmanager
def ticking(model: nn.Module, tick: Callable[[], None]) -> Iterator[None]:
    """``tick`` before every forward of ``model``."""
    hook = model.register_forward_pre_hook(lambda module, inputs: tick())
    try:
        yield
    finally:
        hook.remove()


def run_steps(model: nn.Module, work: Callable[[], Any], most: int, deadline: Deadline, device: str) -> Steps:
    """Up to ``most`` steps of ``work``; every forward of ``model`` begins one."""
    clock = StepClock(most, deadline, device)
    with ticking(model, clock.tick):
        return clock.run(work)


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
