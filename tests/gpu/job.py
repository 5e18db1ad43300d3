"""What a stage is given: the model, the time, and where to put what it finds."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from ..benchmarks.device import LARGE, SMALL, Loads, adapted, random_bench
from ..benchmarks.mid import Bench
from .deadline import Deadline
from .device import forget


ERROR_LINES = 6
"""Last lines of a traceback that are kept."""


def short_error(error: BaseException) -> str:
    """The last lines of its traceback."""
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return "\n".join(line[:300] for line in lines[-ERROR_LINES:])


MODEST = Loads(
    rows=2,
    prompt=64,
    answer=64,
    steps=32,
    block_length=32,
    image_tokens=64,
    slots=64,
    image_steps=8,
    update_length=128,
)
"""For a CPU, on which the plain side's logits of a GPU's load would take tens of GB."""


def loads_of(size: str, device: str) -> Loads:
    """How much is measured."""
    if size == "tiny":
        return SMALL
    return LARGE if device == "cuda" else MODEST


class Job:
    """One run of the command. The model is made when it is first asked for, and kept until ``drop``.

    Attributes:
        size, device, peak_tflops: of the command line; ``device`` is ``"cuda"`` or ``"cpu"``.
        loads: how much is measured.
        found: what the current stage has found so far, JSON types; ``deadline``: when it has to be done.
        tell: a line of progress, which also brings the files up to date.
    """

    def __init__(self, size: str, device: str, peak_tflops: float, tell: Callable[[str], None]) -> None:
        self.size, self.device, self.peak_tflops, self.tell = size, device, peak_tflops, tell
        self.loads = loads_of(size, device)
        self.found: dict[str, Any] = {}
        self.deadline = Deadline.after(0)
        self._bench: Bench | None = None
        self._adapted = False

    def bench(self) -> Bench:
        """The model with random weights; with its adapter once ``adapted`` was called."""
        if self._bench is None:
            self._bench = random_bench(self.size, self.device)
        return self._bench

    def adapted(self) -> Bench:
        """The same with a LoRA, everything else frozen."""
        if not self._adapted:
            self._bench, self._adapted = adapted(self.bench()), True
        return self._bench

    def drop(self) -> None:
        """Frees the model."""
        self._bench, self._adapted = None, False
        forget(self.device)
