"""Corruption of answers for the likelihood. ``NOISING`` is the one place to add a scheme."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from .rng import keyed_generator
from .settings import TaskSettings
from .types import Noise, Rollout


HIGHEST_TRUNCATED = 0.999
"""Of 1024 codes one stays visible at the last update; answers of 500 tokens and fewer are then hidden whole."""

LOWEST_RATIO = {"truncated": 0.8, "cosine": 0.0}
"""``mask_ratio_min`` where it is not set."""


def timesteps(
    rule: str, t1: int, num_iterations: int, num_timesteps: int, lowest: float = 0.0, *, generator: torch.Generator
) -> list[int]:
    """Timesteps t_1..t_K in 1..T of one row's inner updates.

    * ``stratified``: t_n = ((t_1 - 1 + (n - 1) T / K) mod T) + 1, evenly spaced and wrapped: the paper's example
      100 300 500 700 900 (section 5.2).
    * ``paper_formula``: t_n = floor((n - 1)/(K - 1) (T - t_1) + t_1), the printed formula of Algorithm 1: 100 325 550
      775 1000; t_1 when K = 1.
    * ``random``: a fresh draw for every update after the first.
    * ``truncated``: t_n = min(g + (1 - g) n / K, 0.999) T with g = ``lowest``: high ratios only, rising over the updates,
      and t_1 plays no part. MaskGRPO's law for images (arXiv 2510.02880).
    * ``cosine``: T cos(pi u / 2) with u ~ U(0, u_max) and cos(pi u_max / 2) = ``lowest``, a fresh draw for every update:
      the law of MMaDA's image training and of its sampler's cosine schedule.
    """
    if rule == "truncated":
        ratios = (lowest + (1 - lowest) * n / num_iterations for n in range(1, num_iterations + 1))
        # A millionth more: 0.7 + 0.3 x 3 / 12 is 0.775, whatever floats make of it.
        return [max(math.floor(min(ratio, HIGHEST_TRUNCATED) * num_timesteps + 1e-6), 1) for ratio in ratios]
    if rule == "cosine":
        draws = torch.rand(num_iterations, dtype=torch.float64, generator=generator) * math.acos(lowest)
        return [max(round(math.cos(angle) * num_timesteps), 1) for angle in draws.tolist()]
    if rule == "stratified":
        spaced = ((t1 - 1 + (n * num_timesteps) // num_iterations) % num_timesteps + 1 for n in range(num_iterations))
        return list(spaced)
    if rule == "paper_formula":
        steps = max(num_iterations - 1, 1)
        return [math.floor(n * (num_timesteps - t1) / steps + t1) for n in range(num_iterations)]
    later = torch.randint(1, num_timesteps + 1, (num_iterations - 1,), generator=generator)
    return [t1, *later.tolist()]


def random_subset(candidates: Bool[Tensor, " L"], count: int, *, generator: torch.Generator) -> Bool[Tensor, " L"]:
    """Exactly ``count`` of the True positions, uniformly at random."""
    positions = candidates.nonzero().squeeze(1)
    chosen = positions[torch.randperm(len(positions), generator=generator)[:count].to(positions.device)]
    return torch.zeros_like(candidates).index_fill(0, chosen, True)


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredNoising:
    """UniGRPO's structured noising (arXiv 2505.15809, section 3.3): a mask ratio t/T per inner update.

    The question is never masked. Of the n tokens that count, exactly round(n t / T), at least one, are hidden and
    scored. The draws of one inner update share its timestep. Every mask comes from a private generator keyed by
    (seed, window, row, inner update, draw).
    """

    timesteps: str = "stratified"
    timestep_start: int | None = None
    mask_ratio_min: float | None = None
    num_timesteps: int = 1000

    def __call__(
        self, rollout: Rollout, *, num_iterations: int, num_samples: int, key: tuple[int, ...], rows: list[int]
    ) -> Noise:
        """Noise ``[B, K, S, L]`` for ``rollout``; ``key`` = (seed, window), ``rows`` = global row numbers ``[B]``."""
        completion = rollout.completion_mask.cpu()
        batch, length = completion.shape
        hidden = torch.zeros(batch, num_iterations, num_samples, length, dtype=torch.bool)
        ratio = torch.zeros(batch, num_iterations, num_samples)
        for b, row in enumerate(rows):
            count = int(completion[b].sum())
            for k, t in enumerate(self.row_timesteps(num_iterations, (*key, row))):
                ratio[b, k] = t / self.num_timesteps
                masked = min(max(round(count * t / self.num_timesteps), 1), count)
                for s in range(num_samples):
                    generator = keyed_generator("mask", *key, row, k, s)
                    hidden[b, k, s] = random_subset(completion[b], masked, generator=generator)
        hidden = hidden.to(rollout.completion_mask.device)
        return Noise(hidden=hidden, target=hidden, weight=hidden.float(), mask_ratio=ratio.to(hidden.device))

    def row_timesteps(self, num_iterations: int, key: tuple[int, ...]) -> list[int]:
        """t_1..t_K of the row named by ``key`` = (seed, window, row); t_1 ~ U{1..T} unless it is fixed."""
        generator = keyed_generator("timestep", *key)
        drawn = int(torch.randint(1, self.num_timesteps + 1, (), generator=generator))
        t1 = self.timestep_start or drawn
        lowest = LOWEST_RATIO.get(self.timesteps, 0.0) if self.mask_ratio_min is None else self.mask_ratio_min
        return timesteps(self.timesteps, t1, num_iterations, self.num_timesteps, lowest, generator=generator)


def structured(settings: TaskSettings, num_timesteps: int) -> StructuredNoising:
    """``StructuredNoising`` as a task asks for it."""
    return StructuredNoising(
        timesteps=settings.timesteps,
        timestep_start=settings.timestep_start,
        mask_ratio_min=settings.mask_ratio_min,
        num_timesteps=num_timesteps,
    )


NOISING = {"structured": structured}
