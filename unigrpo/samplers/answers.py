"""What a forward that several spans share has said of one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..models.forward import MaskedDiffusionOutput, from_logits
from ..models.head import rows_per_chunk
from ..types import TokenSpace


class Answers:
    """Stands for the model of one span: a shared forward has told it the logits of the span's holes before each step."""

    def hold(self, holes: Tensor, logits: Tensor, space: TokenSpace) -> None:
        """Keeps what a step may ask for.

        Args:
            holes: ``[B, L]`` bool, of all rows.
            logits: ``[n, W]`` fp32 of these, row-major, guided, at temperature 1.
            space: the ids of their columns.
        """
        self.logits, self.space = logits, space
        self.row_of = torch.full(holes.shape, -1, device=holes.device)
        self.row_of[holes] = torch.arange(len(logits), device=holes.device)

    def __call__(
        self,
        rows: Tensor,
        holes: Tensor,
        token_space: TokenSpace | None,
        temperature: float = 1.0,
        draw: Any = None,
    ) -> MaskedDiffusionOutput:
        """What the model's forward would return of ``holes [b, L]`` in ``rows [b]``; other arguments as there.

        Raises:
            ValueError: ids that the logits have no columns of.
        """
        asked, first = token_space or TokenSpace(start=0, stop=self.space.stop), self.space.start
        if asked.start < first or asked.stop > self.space.stop:
            raise ValueError(f"the shared forward has logits of {self.space}, and a sampler asks for {asked}")
        inside = TokenSpace(
            start=asked.start - first, stop=asked.stop - first, exclude=tuple(own - first for own in asked.exclude)
        )
        at, law = self.row_of[rows][holes], (None, inside, temperature, None)
        if draw is None:
            return from_logits(self.logits[at], *law, None, None)
        size, parts = rows_per_chunk(self.logits), []
        for start in range(0, max(len(at), 1), size):
            part = slice(start, start + size)
            parts.append(from_logits(self.logits[at[part]], *law, draw.part(part), None))
        found: dict[str, Any] = {name: torch.cat([own[name] for own in parts]) for name in parts[0]}
        return MaskedDiffusionOutput(**{**found, "tokens": found["tokens"] + first})
