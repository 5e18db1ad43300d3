"""Floating-point operations that a model's forwards and gradients need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(slots=True, kw_only=True)
class FlopMeter:
    """Operations of a LLaDA or MMaDA, with an adapter or without, counted while ``counting``; kept on the device until read.

    A token costs 2 a weight and 4 L d a layer of attention over L positions. Of the last layer every token needs keys and
    values, selected ones everything else and the head's columns. A gradient costs as much again for what enters a product,
    and once more for weights that are trained; recomputing is not counted.
    """

    model: nn.Module
    fixed: float = 0.0
    selected: list[Tensor] = field(default_factory=list)

    @contextmanager
    def counting(self) -> Iterator[FlopMeter]:
        """Counts every call of the model."""
        hook = self.model.register_forward_hook(self._count, with_kwargs=True)
        try:
            yield self
        finally:
            hook.remove()

    def total(self) -> float:
        """FLOP so far."""
        return self.fixed + sum(float(flop) for flop in self.selected)

    def _count(self, module: nn.Module, args: tuple, inputs: dict[str, Any], output: Any) -> None:
        rows, length = inputs["input_ids"].shape
        select, space, config = inputs.get("select"), inputs.get("token_space"), self.model.config
        every, chosen = self._trunk()
        attention = 4 * length * config.d_model * (3 if torch.is_grad_enabled() else 1)
        width = config.vocab_size if space is None else space.width
        # Guidance is combined before the head, which then sees half of the selected rows.
        pairs = 2 if inputs.get("guidance_scale") is not None else 1
        head = self._cost(self.model.get_output_embeddings().weight) * width / config.vocab_size / pairs
        count = torch.tensor(rows * length) if select is None else select.sum()
        self.fixed += rows * length * (every + attention * (config.n_layers - 1))
        self.selected.append((chosen + attention + head) * count.double())

    def _trunk(self) -> tuple[float, float]:
        """FLOP a token of the layers' weights: those that every token needs, and those that a selected one needs."""
        every, chosen, last = 0.0, 0.0, f"blocks.{self.model.config.n_layers - 1}."
        for name, weight in self.model.named_parameters():
            if "blocks." not in name or weight.ndim < 2:
                continue
            if last in name and "k_proj" not in name and "v_proj" not in name:
                chosen += self._cost(weight)
            else:
                every += self._cost(weight)
        return every, chosen

    @staticmethod
    def _cost(weight: Tensor) -> float:
        gradients = (2 if weight.requires_grad else 1) if torch.is_grad_enabled() else 0
        return 2 * weight.numel() * (1 + gradients)
