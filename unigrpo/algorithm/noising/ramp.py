"""Mask chances that grow with the position in the answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...types import keyed_generator
from .base import Answer, Draw, Key, independent_subset
from .structured import StructuredNoising


@dataclass(frozen=True, slots=True, kw_only=True)
class RampNoising(StructuredNoising):
    """MaskGRPO's text masks (arXiv 2510.02880): late tokens are hidden more often than early ones.

    At ratio r the j-th of n tokens, j = 0..n-1, stays visible with chance min(1, 2 (1 - r) (1 - j / (n - 1))), each for
    itself: about r n tokens are hidden for r >= 1/2, always the last one.
    """

    def __post_init__(self) -> None:
        StructuredNoising.__post_init__(self)
        if self.noise_per == "block":
            raise ValueError(
                "noise_per='block' with noising 'ramp', whose ratios grow along the whole answer: leave it out, or set noising='structured'"
            )

    def draws(self, answer: Answer, k: int, num_iterations: int, num_samples: int, key: Key) -> list[Draw]:
        """``num_samples`` masks of one ratio."""
        ratio = self.row_timesteps(num_iterations, key)[k] / self.num_timesteps
        n = answer.length
        place = torch.arange(n) / max(n - 1, 1) if n > 1 else torch.ones(n)
        chance = torch.zeros(answer.completion.shape)
        chance[answer.completion] = 1 - (2 * (1 - ratio) * (1 - place)).clamp(max=1)
        drawn = []
        for s in range(num_samples):
            generator = keyed_generator("mask", *key, k, s)
            hidden = independent_subset(answer.completion, chance, generator=generator)
            drawn.append(
                Draw(
                    hidden=hidden,
                    target=hidden,
                    ratio=ratio,
                    probability=chance.clamp(min=1e-8),
                    share=1.0 / num_samples,
                )
            )
        return drawn
