"""Autoregressive decoding with a masked-diffusion model: one token a step, from the left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..models.base import DiffusionPolicy
from ..types import Canvas, Rollout
from .base import check_sampler
from .semi_autoregressive import SemiAutoregressive


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftToRight:
    """Each token is drawn with all earlier ones visible and all later ones hidden (JustGRPO, arXiv 2601.15165).

    The semi-autoregressive sampler with blocks of one token: as many steps as the canvas has positions, fewer where every
    row has stopped. Its log-probabilities are those of ``AutoregressiveNoising``.

    Args:
        temperature: 0 = argmax, else tokens are drawn from softmax(logits / temperature).
        guidance_scale: s of classifier-free guidance, logits u + (s + 1)(c - u); 0 = off.
    """

    temperature: float = 1.0
    guidance_scale: float = 0.0

    def __post_init__(self) -> None:
        check_sampler(self, (), ("temperature", "guidance_scale"))

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
        )
        return sampler(model, policy, canvas, on_step=on_step, generators=generators)
