"""How the noise draws of one inner update become one log-likelihood a token.

With ``reduce="per_draw"`` they do not: each draw has a ratio of its own, and a row's loss is the mean over its draws.
The other kinds mix the draws first, so that the ratio is made of the mixture. ``REDUCTIONS`` is the one place to add one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..parts import check_keys, key


@dataclass(frozen=True, slots=True, kw_only=True)
class PerDraw:
    """Draws are not mixed.

    Attributes:
        mixes: whether the draws of a row become one log-likelihood a token; then the part is called with what
            ``PerToken`` is called with.
        by_sign: whether the mixture depends on the advantage's sign.
    """

    mixes: ClassVar[bool] = False
    by_sign: ClassVar[bool] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PerToken:
    """The draws of a token mixed linearly."""

    mixes: ClassVar[bool] = True
    by_sign: ClassVar[bool] = False

    def __call__(
        self,
        logps: Float[Tensor, "b S L"],
        target: Bool[Tensor, "b S L"],
        weight: Float[Tensor, "b S L"],
        advantages: Float[Tensor, " b"],
    ) -> Float[Tensor, "b L"]:
        """The estimate of each token's log-likelihood in nats; 0 where no draw scores the token."""
        return linear(logps, target, weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """Linear, and for negative advantages an upper bound (SPG, arXiv 2510.09541)."""

    mixes: ClassVar[bool] = True
    by_sign: ClassVar[bool] = True

    bound_exponent: float = key(1.5, "exponent beta of the evidence upper bound", at_least=1)
    bound_mixture: float = key(
        1.0,
        "share of the upper bound in what negative advantages see; the rest is the linear mixture",
        at_least=0,
        at_most=1,
    )

    def __post_init__(self) -> None:
        check_keys(self)

    def __call__(
        self,
        logps: Float[Tensor, "b S L"],
        target: Bool[Tensor, "b S L"],
        weight: Float[Tensor, "b S L"],
        advantages: Float[Tensor, " b"],
    ) -> Float[Tensor, "b L"]:
        """As ``PerToken``."""
        lower = linear(logps, target, weight)
        upper = upper_bound(logps, target, weight, self.bound_exponent)
        mixed = self.bound_mixture * upper + (1 - self.bound_mixture) * lower
        return torch.where(advantages[:, None] < 0, mixed, lower)


REDUCTIONS: dict[str, Callable] = {"per_draw": PerDraw, "per_token": PerToken, "signed": Signed}


def linear(
    logps: Float[Tensor, "b S L"], target: Bool[Tensor, "b S L"], weight: Float[Tensor, "b S L"]
) -> Float[Tensor, "b L"]:
    """sum_s w_s log p_s. With weights share / probability it estimates the evidence lower bound without bias."""
    return torch.where(target, weight * logps, 0.0).sum(dim=1)


def upper_bound(
    logps: Float[Tensor, "b S L"], target: Bool[Tensor, "b S L"], weight: Float[Tensor, "b S L"], exponent: float
) -> Float[Tensor, "b L"]:
    """(1 / beta) log sum_s w_s p_s^beta: SPG's evidence upper bound of a token (arXiv 2510.09541).

    Summed over the tokens it lies above the lower bound for every beta, and above log p itself for beta >= the number
    of tokens (Hoelder's inequality); for smaller beta up to a constant that does not depend on the policy. The logarithm
    of a mean over few draws is biased downwards.
    """
    scored = target & (weight > 0)
    powers = torch.where(scored, exponent * logps + torch.where(scored, weight, 1.0).log(), -torch.inf)
    somewhere = scored.any(dim=1)
    # A finite stand-in keeps the gradient of unscored tokens 0 instead of NaN.
    powers = torch.where(somewhere[:, None], powers, 0.0)
    return torch.where(somewhere, powers.logsumexp(dim=1) / exponent, 0.0)
