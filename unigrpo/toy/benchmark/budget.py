"""The currency of the comparison: rows that went through the policy, and the callback that stops when they are spent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import TrainerCallback


WITH_GRADIENT = 3
"""Passes of a row whose forward is differentiated: a backward costs about two forwards."""


class PassCounter:
    """Counts row-passes: a forward of b rows is b, or 3 b where its output carries a gradient.

    Rollouts, old and reference log-probabilities and updates all count, and so do forwards that serve a metric only;
    guidance doubles the rows of a forward by itself.
    """

    def __init__(self) -> None:
        self.passes = 0

    @contextmanager
    def counting(self, model: nn.Module) -> Iterator[None]:
        """Counts every call of a module of ``model``'s class in the block: the policy and copies of it.

        A hook on all modules, because the frozen reference is a copy that hooks on the policy do not see.
        """
        kind = type(model)

        def count(module: nn.Module, inputs: tuple, keywords: dict[str, Any], output: Any) -> None:
            if type(module) is kind:
                self.passes += _rows(inputs, keywords) * (WITH_GRADIENT if _differentiable(output) else 1)

        handle = register_module_forward_hook(count, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _rows(inputs: tuple, keywords: dict[str, Any]) -> int:
    ids = keywords.get("input_ids")
    ids = keywords.get("inputs_embeds") if ids is None else ids
    return len(inputs[0] if ids is None else ids)


def _differentiable(output: Any) -> bool:
    values = output.values() if hasattr(output, "values") else [output]
    return any(isinstance(value, torch.Tensor) and value.requires_grad for value in values)


class Budget(TrainerCallback):
    """Ends training at the first optimizer step at which ``passes`` or ``seconds`` are spent, and keeps the curve.

    Attributes:
        curve: a point for each rollout: the optimizer steps and row-passes before it, and its mean reward.
        stopped_by: ``"budget"`` or ``"time"``; None while training goes on, or where it ended for another reason.
    """

    def __init__(self, counter: PassCounter, passes: int, seconds: float) -> None:
        self.counter, self.passes, self.limit = counter, passes, seconds
        self.curve: list[dict[str, float]] = []
        self.stopped_by: str | None = None
        self._started, self._before = 0.0, (0, 0)

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs: Any) -> None:
        self._before = (state.global_step, self.counter.passes)

    def on_step_end(self, args, state, control, **kwargs: Any) -> None:
        if self.counter.passes >= self.passes:
            self.stopped_by = "budget"
        elif self.seconds() >= self.limit:
            self.stopped_by = "time"
        control.should_training_stop = control.should_training_stop or self.stopped_by is not None

    def on_log(self, args, state, control, logs=None, **kwargs: Any) -> None:
        # The reward of a rollout is logged with the first step made on it.
        if logs and "reward" in logs:
            step, passes = self._before
            self.curve.append({"step": step, "passes": passes, "reward": float(logs["reward"])})

    def seconds(self) -> float:
        """Wall-clock seconds since training began."""
        return time.perf_counter() - self._started
