"""Random masks: everything, one random ratio, complementary pairs, quadrature nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ...parts import check_keys, key
from ...types import keyed_generator
from .base import Answer, Draw, Key, Noising, random_subset


LOWEST = "smallest mask ratio"
HIGHEST = "largest mask ratio"


def check_range(lowest: float, highest: float) -> None:
    """Raises ``ValueError`` for mask ratios from ``lowest`` to less."""
    if lowest > highest:
        raise ValueError(f"mask_ratio_min={lowest} is greater than mask_ratio_max={highest}")


def coupled_uniforms(count: int, coupling: str, *, generator: torch.Generator) -> list[float]:
    """``count`` numbers in [0, 1), each uniform: independent, or one in each of ``count`` equal strata."""
    draws = torch.rand(count, dtype=torch.float64, generator=generator)
    if coupling != "independent":
        draws = (torch.arange(count, dtype=torch.float64) + draws) / count
    return draws.tolist()


@dataclass(frozen=True, slots=True, kw_only=True)
class FullNoising(Noising):
    """The whole canvas hidden, the answer's tokens scored: diffu-GRPO's one-step likelihood (d1, arXiv 2504.12216).

    The tail is hidden too, as in d1. The estimate is log p of each token without any other; draws differ only in
    ``p_mask_prompt``.
    """

    def draws(self, answer: Answer, k: int, num_iterations: int, num_samples: int, key: Key) -> list[Draw]:
        """``num_samples`` times the same mask."""
        share = 1.0 / num_samples
        return [Draw(hidden=answer.fill, target=answer.completion, ratio=1.0, share=share) for _ in range(num_samples)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomNoising(Noising):
    """A fresh random number of hidden tokens for every draw: of n tokens round(r n), at least one, for r in
    [mask_ratio_min, mask_ratio_max].

    With the whole range [0, 1] the number is uniform on 1..n and weights n / l make the weighted sum unbiased for the
    evidence lower bound (LLaDA, arXiv 2502.09992). In antithetic pairs the second draw hides what the first one
    shows: the number is uniform on 0..n, weights are (n + 1) / l and (n + 1) / (n - l) (ESPO, arXiv 2512.03759).
    """

    mask_ratio_min: float = key(0.0, LOWEST, at_least=0, below=1)
    mask_ratio_max: float = key(1.0, HIGHEST, above=0, at_most=1)
    draw_coupling: str = key(
        "stratified",
        """the draws' mask ratios: "independent", "stratified" (one in each of S equal strata) or "antithetic" (complementary
        pairs, their ratios stratified; S even)""",
        choices=("independent", "stratified", "antithetic"),
    )

    def __post_init__(self) -> None:
        check_keys(self)
        check_range(self.mask_ratio_min, self.mask_ratio_max)

    def check_draws(self, num_samples: int) -> None:
        """Raises ``ValueError`` for draws that are no pairs."""
        Noising.check_draws(self, num_samples)
        if self.draw_coupling == "antithetic" and num_samples % 2:
            raise ValueError(
                f"num_noise_samples={num_samples} cannot be cut into pairs; make it even, or set draw_coupling='stratified'"
            )

    def draws(self, answer: Answer, k: int, num_iterations: int, num_samples: int, key: Key) -> list[Draw]:
        """``num_samples`` masks."""
        generator = keyed_generator("ratio", *key, k)
        paired = self.draw_coupling == "antithetic"
        drawn, n = [], answer.length
        for s, u in enumerate(coupled_uniforms(num_samples // (1 + paired), self.draw_coupling, generator=generator)):
            ratio = self.mask_ratio_min + (self.mask_ratio_max - self.mask_ratio_min) * u
            count = self._count(ratio, n, paired)
            own = keyed_generator("mask", *key, k, s)
            share = 1.0 / num_samples
            if paired:
                drawn += complementary_pair(answer, count, ratio, n + 1, share, own)
            else:
                hidden = random_subset(answer.completion, count, generator=own)
                drawn.append(
                    Draw(hidden=hidden, target=hidden, ratio=ratio, probability=max(count, 1) / max(n, 1), share=share)
                )
        return drawn

    def _count(self, ratio: float, n: int, paired: bool) -> int:
        """Tokens hidden at ``ratio``: over the whole range uniform on 1..n, in pairs on 0..n; else round(r n), at least 1."""
        if paired:
            return min(math.floor(ratio * (n + 1)), n)
        whole = (self.mask_ratio_min, self.mask_ratio_max) == (0.0, 1.0)
        return min(math.floor(ratio * n) + 1 if whole else max(round(ratio * n), 1), n)


def complementary_pair(
    answer: Answer, count: int, ratio: float, total: int, share: float, generator: torch.Generator
) -> list[Draw]:
    """``count`` random tokens hidden, and all the others; their chances are count / total and (n - count) / total."""
    first = random_subset(answer.completion, count, generator=generator)
    pair = ((first, count, ratio), (answer.completion & ~first, answer.length - count, 1 - ratio))
    return [
        Draw(hidden=hidden, target=hidden, ratio=own, probability=max(hides, 1) / max(total, 1), share=share)
        for hidden, hides, own in pair
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoupledNoising(Noising):
    """Everything hidden once, then complementary pairs, so that every token is scored (coupled-GRPO, arXiv 2506.20639).

    Of n tokens round(t n) with t ~ U(mask_ratio_min, mask_ratio_max) are hidden by the first of a pair, the others by the second.
    Mixed with inverse probabilities: half the log-likelihood without any other token plus half the pair's, weighted
    with n / l and n / (n - l).
    """

    mask_ratio_min: float = key(0.2, LOWEST, at_least=0, below=1)
    mask_ratio_max: float = key(0.8, HIGHEST, above=0, at_most=1)

    def __post_init__(self) -> None:
        check_keys(self)
        check_range(self.mask_ratio_min, self.mask_ratio_max)

    def draws(self, answer: Answer, k: int, num_iterations: int, num_samples: int, key: Key) -> list[Draw]:
        """1 + 2 ``num_samples`` masks."""
        generator = keyed_generator("ratio", *key, k)
        n = answer.length
        drawn = [Draw(hidden=answer.fill, target=answer.completion, ratio=1.0, share=0.5)]
        for s, u in enumerate(coupled_uniforms(num_samples, "stratified", generator=generator)):
            ratio = self.mask_ratio_min + (self.mask_ratio_max - self.mask_ratio_min) * u
            count = min(max(round(ratio * n), 1), max(n - 1, 1))
            own = keyed_generator("mask", *key, k, s)
            drawn += complementary_pair(answer, count, ratio, n, 0.5 / num_samples, own)
        return drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class QuadratureNoising(Noising):
    """Mask ratios at the S Gauss-Legendre nodes of [0, 1] (GDPO, arXiv 2510.08554).

    Of n tokens round(t_s n), at least one, are hidden at random, as in the published code; with inverse probabilities the
    weights are w_s n / l_s. The error is the quadrature's and the rounding's. (A coin for each token would make the rule
    exact up to 2 S tokens, and much noisier where tokens are alike.)
    """

    def draws(self, answer: Answer, k: int, num_iterations: int, num_samples: int, key: Key) -> list[Draw]:
        """One mask a node."""
        drawn, n = [], answer.length
        for s, (t, weight) in enumerate(zip(*unit_nodes(num_samples), strict=True)):
            count = min(max(round(t * n), 1), n)
            hidden = random_subset(answer.completion, count, generator=keyed_generator("mask", *key, k, s))
            drawn.append(
                Draw(hidden=hidden, target=hidden, ratio=t, probability=max(count, 1) / max(n, 1), share=weight)
            )
        return drawn


def unit_nodes(count: int) -> tuple[list[float], list[float]]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()
