"""Structured noising, and the timestep rules that give its mask ratios."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ...parts import check_keys, key
from ...types import keyed_generator
from .base import Answer, Draw, Key, Noising, random_subset


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredNoising(Noising):
    """UniGRPO's structured noising (arXiv 2505.15809, section 3.3): a mask ratio t/T per inner update.

    The question is never masked. Of the n tokens that count, exactly round(n t / T), at least one, are hidden and
    scored. The draws of one inner update share its timestep.

    With ``noise_per`` "block" each block of the model's attention has timesteps of its own, and at least one hidden token; the loss
    is still a mean over the hidden tokens of a row. UniGRPO's models have no blocks. Of block models, BD3LM (arXiv 2503.09573)
    was trained with a ratio for each block, and SDAR's, dllm's and dFactory's codes draw one a row.
    """

    timesteps: str = key(
        "stratified",
        """how the inner updates' timesteps are spaced: "stratified", "paper_formula", "random", "truncated" or "cosine" (the
        last two from mask_ratio_min on)""",
        choices=("stratified", "paper_formula", "random", *LOWEST_RATIO),
    )
    timestep_start: int | None = key(None, "timestep of the first inner update; none = drawn for each row", at_least=1)
    mask_ratio_min: float | None = key(
        None, "smallest mask ratio; none = 0.8 for truncated timesteps, 0 for cosine ones", at_least=0, below=1
    )
    num_timesteps: int = key(1000, "T, the timesteps of the noise process", at_least=1)
    noise_per: str = key(
        "answer",
        """what has a mask ratio of its own: the whole "answer", or each "block" of a model whose attention is in blocks""",
        choices=("answer", "block"),
    )

    def __post_init__(self) -> None:
        check_keys(self)
        if (self.timestep_start or 1) > self.num_timesteps:
            raise ValueError(f"timestep_start={self.timestep_start} must lie in 1..num_timesteps={self.num_timesteps}")
        if self.mask_ratio_min is not None and self.timesteps not in LOWEST_RATIO:
            raise ValueError(
                f"mask_ratio_min={self.mask_ratio_min} does nothing with timesteps={self.timesteps!r}; set both, with timesteps "
                "'truncated' or 'cosine', in task_overrides if one task alone is meant, or use noising 'random' or 'coupled'"
            )

    def draws(self, answer: Answer, k: int, num_iterations: int, num_samples: int, key: Key) -> list[Draw]:
        """``num_samples`` masks of one size."""
        parts = [(answer.completion, key)]
        if self.noise_per == "block" and answer.block is not None:
            parts = [(own, (*key, number)) for number, own in enumerate(answer.in_blocks)]
        return [self._draw(answer, parts, k, num_iterations, s, 1.0 / num_samples) for s in range(num_samples)]

    def _draw(
        self, answer: Answer, parts: list[tuple[Tensor, Key]], k: int, num_iterations: int, s: int, share: float
    ) -> Draw:
        """Draw ``s`` of update ``k``; each of ``parts`` has timesteps and a stream of its own."""
        hidden, ratio = torch.zeros_like(answer.completion), 0.0
        chance = torch.ones(len(hidden), dtype=torch.float64)
        for own, stream in parts:
            t, n = self.row_timesteps(num_iterations, stream)[k], int(own.sum())
            masked = self.masked_count(n, t)
            hidden |= self.choose(own, masked, keyed_generator("mask", *stream, k, s))
            chance[own] = max(masked, 1) / max(n, 1)
            ratio += t / self.num_timesteps * n / max(answer.length, 1)
        return Draw(hidden=hidden, target=hidden, ratio=ratio, probability=chance, share=share)

    def masked_count(self, length: int, t: int) -> int:
        """How many of ``length`` tokens timestep ``t`` hides."""
        return min(max(round(length * t / self.num_timesteps), 1), length)

    def choose(self, completion: Bool[Tensor, " L"], count: int, generator: torch.Generator) -> Bool[Tensor, " L"]:
        """Which tokens are hidden: any, with equal chance."""
        return random_subset(completion, count, generator=generator)

    def row_timesteps(self, num_iterations: int, key: Key) -> list[int]:
        """t_1..t_K of the row named by ``key`` = (seed, window, row); t_1 ~ U{1..T} unless it is fixed."""
        generator = keyed_generator("timestep", *key)
        drawn = int(torch.randint(1, self.num_timesteps + 1, (), generator=generator))
        t1 = self.timestep_start or drawn
        lowest = LOWEST_RATIO.get(self.timesteps, 0.0) if self.mask_ratio_min is None else self.mask_ratio_min
        return timesteps(self.timesteps, t1, num_iterations, self.num_timesteps, lowest, generator=generator)
