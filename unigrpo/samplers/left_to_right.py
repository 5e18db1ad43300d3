"""Autoregressive decoding with a masked-diffusion model: one token a step, from the left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..models.base import DiffusionPolicy
from ..parts import check_keys, key, keys_of
from ..types import Canvas
from .base import GUIDANCE, TEMPERATURE, Stepwise, Truncated
from .semi_autoregressive import BlockWriter, SemiAutoregressive


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftToRight(Stepwise):
    """Each token is drawn with all earlier ones visible and all later ones hidden (JustGRPO, arXiv 2601.15165).

    The semi-autoregressive sampler with blocks of one token: as many steps as the canvas has positions, fewer where every
    row has stopped. Its log-probabilities are those of ``AutoregressiveNoising``.
    """

    tasks: ClassVar[tuple[str, ...]] = ("text", "mmu")

    temperature: float = key(1.0, TEMPERATURE, at_least=0)
    guidance_scale: float = key(0.0, GUIDANCE, at_least=0)

    def __post_init__(self) -> None:
        check_keys(self)

    def begin(self, policy: DiffusionPolicy, canvas: Canvas, generators: list[torch.Generator]) -> BlockWriter:
        """The canvas with a block for each position, nothing written yet."""
        sampler = SemiAutoregressive(
            steps=max(int(canvas.fill_mask.sum(dim=1).max()), 1),
            block_length=1,
            temperature=self.temperature,
            guidance_scale=self.guidance_scale,
            **{name: getattr(self, name) for name in keys_of(Truncated)},
        )
        return sampler.begin(policy, canvas, generators)

    def advance(self, model: Any, writer: BlockWriter, generators: list[torch.Generator]) -> Iterator[tuple[int, int]]:
        """As in ``Stepwise``."""
        return writer.sampler.advance(model, writer, generators)
