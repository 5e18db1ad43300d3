"""Autoregressive decoding with a masked-diffusion model: one token a step, from the left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..models.base import DiffusionPolicy
from ..parts import check_keys, key, keys_of
from ..types import Canvas, Rollout
from .base import GUIDANCE, TEMPERATURE, Truncated
from .semi_autoregressive import SemiAutoregressive


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftToRight(Truncated):
    """Each token is drawn with all earlier ones visible and all later ones hidden (JustGRPO, arXiv 2601.15165).

    The semi-autoregressive sampler with blocks of one token: as many steps as the canvas has positions, fewer where every
    row has stopped. Its log-probabilities are those of ``AutoregressiveNoising``.
    """

    tasks: ClassVar[tuple[str, ...]] = ("text", "mmu")

    temperature: float = key(1.0, TEMPERATURE, at_least=0)
    guidance_scale: float = key(0.0, GUIDANCE, at_least=0)

    def __post_init__(self) -> None:
        check_keys(self)

    def __call__(
        self,
        model,
        policy: DiffusionPolicy,
        canvas: Canvas,
        *,
        on_step: Callable[[int, int], None] | None = None,
        generators: list[torch.Generator],
    ) -> Rollout:
        """Fill ``canvas``; arguments and errors as ``SemiAutoregressive``'s."""
        sampler = SemiAutoregressive(
            steps=max(int(canvas.fill_mask.sum(dim=1).max()), 1),
            block_length=1,
            temperature=self.temperature,
            guidance_scale=self.guidance_scale,
            **{name: getattr(self, name) for name in keys_of(Truncated)},
        )
        return sampler(model, policy, canvas, on_step=on_step, generators=generators)
