"""Exact likelihoods of short answers, by enumeration of every mask: what the estimators of this library estimate.

A mask over an answer of n tokens is a number below 2^n, bit i set = token i hidden. Whatever a scheme expects is a table of
coefficients ``[2^n, n]``, the mean weight with which it counts log p of token i under that mask. Every law is written down
from its definition, without the library's noising.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


def all_masks(n: int) -> Bool[Tensor, "M n"]:
    """The M = 2^n masks over n tokens in the order of their numbers."""
    return (torch.arange(2**n)[:, None] >> torch.arange(n)) % 2 == 1


def mask_numbers(hidden: Bool[Tensor, "... n"]) -> Tensor:
    """The number of each mask."""
    return (hidden.long() << torch.arange(hidden.shape[-1])).sum(dim=-1)


@dataclass(frozen=True, slots=True)
class ExactLikelihood:
    """All that a masked-diffusion model says about one answer of n tokens.

    Attributes:
        table: ``[2^n, n]`` float64, log p of token i given the tokens that the mask leaves visible; 0 where i is visible.
    """

    table: Float[Tensor, "M n"]

    @classmethod
    def of(
        cls, logps: Callable[[Tensor], Tensor], completion: Bool[Tensor, " L"], also_hidden: Tensor | None = None
    ) -> ExactLikelihood:
        """One call of ``logps`` (hidden ``[m, L]`` to log-probabilities ``[m, L]``) with all masks of ``completion``.

        ``also_hidden [L]`` are further positions hidden in every mask.
        """
        masks = all_masks(int(completion.sum()))
        hidden = torch.zeros(len(masks), len(completion), dtype=torch.bool)
        hidden[:, completion] = masks
        scored = logps(hidden if also_hidden is None else hidden | also_hidden)[:, completion].double()
        return cls(torch.where(masks, scored, 0.0))

    @property
    def n(self) -> int:
        return self.table.shape[1]

    def expect(self, coefficients: Float[Tensor, "M n"]) -> float:
        """The mean of a linear estimate: sum over masks and tokens of coefficient times log p."""
        return float((coefficients * self.table).sum())

    def along(self, order: tuple[int, ...]) -> float:
        """log of the product of p(x_s(k) | x_s(1..k-1)): the tokens written one by one in ``order``."""
        total, hidden = 0.0, 2**self.n - 1
        for token in order:
            total += float(self.table[hidden, token])
            hidden -= 1 << token
        return total

    def orders(self) -> Float[Tensor, " F"]:
        """``along`` each of the F = n! orders."""
        every = itertools.permutations(range(self.n))
        return torch.tensor([self.along(order) for order in every], dtype=torch.float64)

    def elbo(self) -> float:
        """The evidence lower bound n E_{l ~ U{1..n}} E_M (1/l) sum_{i in M} log p_i (LLaDA, arXiv 2502.09992)."""
        return self.expect(uniform_size(self.n))

    def elbo_over_orders(self) -> float:
        """The same bound in its any-order form: the mean of ``along`` over all orders (arXiv 2110.02037, Eq. 2)."""
        return float(self.orders().mean())

    def log_likelihood(self) -> float:
        """log p of the answer when tokens are written one by one in a uniformly random order."""
        return float(self.orders().logsumexp(dim=0)) - math.lgamma(self.n + 1)

    def left_to_right(self) -> float:
        """log p of the answer written from the left."""
        return self.along(tuple(range(self.n)))

    def one_step(self) -> float:
        """Every token without any other: diffu-GRPO's likelihood (d1, arXiv 2504.12216)."""
        return self.expect(fixed_mask(torch.ones(self.n, dtype=torch.bool)))

    def upper_bound(self, exponent: float) -> float:
        """(1/beta) sum_i log E[(n/l) p_i^beta 1{i hidden}], l ~ U{1..n}: SPG's bound (arXiv 2510.09541, Eq. 9)."""
        powers = uniform_size(self.n) * (exponent * self.table).exp()
        return float(powers.sum(dim=0).log().sum()) / exponent


def fixed_mask(hidden: Bool[Tensor, " n"], weight: float = 1.0) -> Float[Tensor, "M n"]:
    """Always this mask."""
    n = len(hidden)
    coefficients = torch.zeros(2**n, n, dtype=torch.float64)
    coefficients[mask_numbers(hidden)] = weight * hidden.double()
    return coefficients


def of_size(n: int, size: int, weight: float = 1.0) -> Float[Tensor, "M n"]:
    """A uniformly random set of ``size`` tokens is hidden, each counted with ``weight``."""
    masks = all_masks(n)
    share = (masks.sum(dim=1) == size).double() / math.comb(n, size)
    return weight * share[:, None] * masks


def uniform_size(n: int) -> Float[Tensor, "M n"]:
    """l ~ U{1..n} hidden tokens with weight n / l: the evidence lower bound."""
    return sum(of_size(n, size, n / size) for size in range(1, n + 1)) / n


def independent(ratios: list[float], weight: float = 1.0) -> Float[Tensor, "M n"]:
    """Token i hidden by itself with chance ``ratios[i]``."""
    chances, masks = torch.tensor(ratios, dtype=torch.float64), all_masks(len(ratios))
    share = torch.where(masks, chances, 1 - chances).prod(dim=1)
    return weight * share[:, None] * masks


def mean_over_hidden(coefficients: Float[Tensor, "M n"], whole: float = 1.0) -> Float[Tensor, "M n"]:
    """A law of weight 1 with each mask's tokens averaged, times ``whole``."""
    return whole * coefficients / all_masks(coefficients.shape[1]).sum(dim=1).clamp(min=1)[:, None]


def rounded_share(n: int, lowest: float, highest: float) -> list[float]:
    """Chance of each count 0..n for round(t n), t ~ U(lowest, highest), cut to 1..n-1."""
    chances = [0.0] * (n + 1)
    for count in range(n + 1):
        low, high = max((count - 0.5) / n, lowest), min((count + 0.5) / n, highest)
        chances[min(max(count, 1), max(n - 1, 1))] += max(high - low, 0.0) / (highest - lowest)
    return chances


def coupled(n: int, lowest: float = 0.2, highest: float = 0.8) -> Float[Tensor, "M n"]:
    """Half the full mask and half a complementary pair with weights n / l, n / (n - l) (coupled-GRPO, 2506.20639)."""
    total = 0.5 * fixed_mask(torch.ones(n, dtype=torch.bool))
    for count, chance in enumerate(rounded_share(n, lowest, highest)):
        for size in (count, n - count) if chance else ():
            total += 0.5 * chance * of_size(n, size, n / size)
    return total


def quadrature(n: int, nodes: int) -> Float[Tensor, "M n"]:
    """sum_s w_s (n / l_s) E[sum of l_s random hidden tokens], l_s = round(t_s n) at least 1, t_s and w_s Gauss-Legendre's on
    [0, 1] (GDPO, arXiv 2510.08554).
    """
    points, weights = np.polynomial.legendre.leggauss(nodes)
    total = torch.zeros(2**n, n, dtype=torch.float64)
    for point, weight in zip(points, weights, strict=True):
        size = max(round(n * (point + 1) / 2), 1)
        total += of_size(n, size, weight / 2 * n / size)
    return total


def blocks(n: int, block_length: int, p_mask: float = 0.0) -> Float[Tensor, "M n"]:
    """A uniformly random block with a uniform number of hidden tokens, all later blocks hidden, earlier tokens hidden
    with chance ``p_mask``; every hidden token counted with n / all hidden ones (SPG, arXiv 2510.09541, as coded).
    """
    count, masks, total = -(-n // block_length), all_masks(n), torch.zeros(2**n, n, dtype=torch.float64)
    place = torch.arange(n) // block_length
    for block in range(count):
        own, earlier, later = masks[:, place == block], masks[:, place < block], masks[:, place > block]
        inside, size = own.sum(dim=1), own.shape[1]
        subsets = torch.tensor([math.comb(size, int(held)) for held in inside], dtype=torch.float64)
        chance = torch.where(later.all(dim=1) & (inside > 0), 1 / (count * size * subsets), 0.0)
        chance = chance * torch.where(earlier, p_mask, 1 - p_mask).prod(dim=1)
        total += mean_over_hidden(chance[:, None] * masks, n)
    return total
