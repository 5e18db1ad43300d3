"""What a stage is given: the model, the time, and where to put what it finds."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from unigrpo.models.adapters import add_adapter
from unigrpo.runs.build import build_lora
from unigrpo.runs.recipe import load_recipe

from ..benchmarks.bench import TINY, Bench, Sizes, random_bench
from ..support import RECIPES
from .steps import Deadline, forget


RECIPE = RECIPES / "math_mmada_8b_lora.yaml"
"""Whose adapter and whose memory are measured."""

ERROR_LINES = 6
"""Last lines of a traceback that are kept."""

LARGE = Sizes(
    batch=8, prompt=256, answer=256, steps=128, image_tokens=1024, image_steps=50, update_rows=8, update_length=512
)
"""``batch`` answers or images are made at once; images have the slots and the caption of ``trimmed_slots``."""

MODEST = replace(
    LARGE,
    **{"batch": 2, "prompt": 64, "answer": 64, "steps": 32, "update_rows": 2, "update_length": 128},
    **{"image_tokens": 64, "image_steps": 8, "trimmed_slots": 64},
)
"""For a CPU, on which the plain side's logits of a GPU's sizes would take tens of GB."""


def short_error(error: BaseException) -> str:
    """The last lines of its traceback."""
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return "\n".join(line[:300] for line in lines[-ERROR_LINES:])


def adapted(bench: Bench) -> Bench:
    """The same with the recipe's LoRA, everything else frozen; changes the model in place."""
    return replace(bench, model=add_adapter(bench.model, build_lora(load_recipe(RECIPE))).eval())


class Job:
    """One run of the command. The model is made when it is first asked for, and kept until ``drop``.

    Attributes:
        size, device, peak_tflops: of the command line; ``device`` is ``"cuda"`` or ``"cpu"``.
        found: what the current stage has found so far, JSON types; ``deadline``: when it has to be done.
        tell: a line of progress, which also brings the files up to date.
    """

    def __init__(self, size: str, device: str, peak_tflops: float, tell: Callable[[str], None]) -> None:
        self.size, self.device, self.peak_tflops, self.tell = size, device, peak_tflops, tell
        self.found: dict[str, Any] = {}
        self.deadline = Deadline.after(0)
        self._bench: Bench | None = None
        self._adapted = False

    def bench(self) -> Bench:
        """The model with random weights, bf16 on a GPU; with its adapter once ``adapted`` was called."""
        if self._bench is None:
            cuda = self.device == "cuda"
            sizes = TINY if self.size == "tiny" else LARGE if cuda else MODEST
            dtype = torch.bfloat16 if cuda and self.size != "tiny" else torch.float32
            self._bench = random_bench(self.size, sizes, self.device, dtype)
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
