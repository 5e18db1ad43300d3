"""Stopping a run whose numbers have left the finite ones, before they reach the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..types import Experience
from .batches import Unit


SHOWN = 8
"""Answers that an error names."""


class FiniteGuard:
    """Collects what went wrong during one optimizer step.

    A loss is checked unit by unit, so that its answers are known; gradients by the norm that clipping takes.
    """

    def __init__(self) -> None:
        self.indices: list[int] = []
        self._faults: list[str] = []
        self._unread: list[tuple[Tensor, Callable[[int, float], str]]] = []

    @property
    def faults(self) -> list[str]:
        """What was found. The losses of all units are read here, in one wait for the device."""
        if self._unread:
            numbers = iter(torch.cat([losses for losses, _ in self._unread]).tolist())
            for losses, described in self._unread:
                own = [next(numbers) for _ in range(len(losses))]
                self._faults += [described(place, loss) for place, loss in enumerate(own) if not math.isfinite(loss)]
            self._unread = []
        return self._faults

    def check_loss(
        self, losses: Tensor, unit: Unit, experiences: list[Experience], k: int, table: dict[str, list]
    ) -> None:
        """``losses [b]`` of a unit at inner update ``k``; ``table`` has their prompts where they are known."""
        self.indices += [] if unit.dummy else list(unit.indices)

        def described(place: int, loss: float) -> str:
            own = describe(experiences, unit.indices[place], table)
            return f"loss {loss} of {own} at inner update {k + 1}"

        self._unread.append((losses, described))

    def check_given(self, losses: Tensor, unit: Unit, experiences: list[Experience]) -> None:
        """``losses [b]`` of given answers (``sft_dataset``)."""

        def described(place: int, loss: float) -> str:
            tokens = experiences[unit.indices[place]].ids.tolist()
            return f"sft loss {loss} of the given answer with tokens {tokens[:SHOWN]} ..."

        self._unread.append((losses, described))

    def check_norm(self, norm: Tensor | float, experiences: list[Experience], table: dict[str, list]) -> None:
        """The gradient norm of the finished optimizer step; a fault names all of its answers, because they are summed."""
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if math.isfinite(float(norm)) or self.faults:
            return
        named = "; ".join(describe(experiences, index, table) for index in self.indices[:SHOWN])
        more = f" and {len(self.indices) - SHOWN} more" if len(self.indices) > SHOWN else ""
        self._faults.append(f"gradient of an optimizer step with {named or 'given answers alone'}{more}")

    def flush(self) -> str:
        """What was found since the last call, empty if all is well."""
        found = "; ".join(self.faults[:SHOWN])
        self._faults, self.indices = [], []
        return found


def describe(experiences: list[Experience], place: int, table: dict[str, list]) -> str:
    """The answer, or the span of one, at ``place`` in words; ``table`` has a line for each answer of this rank."""
    prompts: list[Any] = table.get("prompt", [])
    experience = experiences[place]
    answer = experience.index - experiences[0].index
    prompt = f", prompt {str(prompts[answer])[:60]!r}" if answer < len(prompts) else ""
    return f"row {experience.index} (task {experience.task}, advantage {experience.advantage:.3g}{prompt})"
