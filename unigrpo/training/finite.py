"""Stopping a run whose numbers have left the finite ones, before they reach the weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..types import Experience
from .batches import Unit


SHOWN = 8
"""Rows that an error names."""


class FiniteGuard:
    """Collects what went wrong during one optimizer step.

    A loss is checked unit by unit, so that its rows are known; gradients once, before they are clipped.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.rows: list[int] = []

    def check_loss(self, losses: Tensor, unit: Unit, rows: list[Experience], k: int, table: dict[str, list]) -> None:
        """``losses [b]`` of a unit's rows at inner update ``k``; ``table`` has their prompts where they are known."""
        self.rows += [] if unit.dummy else list(unit.rows)
        for place in (~losses.isfinite()).nonzero().squeeze(1).tolist():
            row = describe(rows[unit.rows[place]], unit.rows[place], table)
            self.faults.append(f"loss {losses[place].item()} of {row} at inner update {k + 1}")

    def check_given(self, losses: Tensor, unit: Unit, rows: list[Experience]) -> None:
        """``losses [b]`` of given answers (``sft_dataset``)."""
        for place in (~losses.isfinite()).nonzero().squeeze(1).tolist():
            tokens = rows[unit.rows[place]].ids.tolist()
            self.faults.append(f"sft loss {losses[place].item()} of the given answer with tokens {tokens[:SHOWN]} ...")

    def check_gradients(self, model: nn.Module, rows: list[Experience], table: dict[str, list]) -> None:
        """Gradients of the finished optimizer step; a fault names all of its rows, because they are summed."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        # Always taken: with sharded gradients the norm is a collective, and a fault may be this rank's alone.
        if not gradients or bool(total_norm(gradients).isfinite()) or self.faults:
            return
        named = "; ".join(describe(rows[index], index, table) for index in self.rows[:SHOWN])
        more = f" and {len(self.rows) - SHOWN} more" if len(self.rows) > SHOWN else ""
        self.faults.append(f"gradient of an optimizer step with {named or 'given answers alone'}{more}")

    def flush(self) -> str:
        """What was found since the last call, empty if all is well."""
        found = "; ".join(self.faults[:SHOWN])
        self.faults, self.rows = [], []
        return found


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients, sharded ones gathered."""
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def describe(row: Experience, index: int, table: dict[str, list]) -> str:
    """One row in words."""
    prompts: list[Any] = table.get("prompt", [])
    prompt = f", prompt {str(prompts[index])[:60]!r}" if index < len(prompts) else ""
    return f"row {row.index} (task {row.task}, advantage {row.advantage:.3g}{prompt})"
