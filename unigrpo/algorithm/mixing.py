"""How the noise draws of one inner update become one log-likelihood a token.

With ``reduce="per_draw"`` they do not: each draw has a ratio of its own, and a row's loss is the mean over its draws.
The other kinds mix the draws first, so that the ratio is made of the mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


MIXING = ("per_token", "signed")
"""Kinds of ``reduce`` that mix draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """A mixture of draws: ``linear``, or for negative advantages an upper bound.

    Args:
        kind: ``"per_draw"``, ``"per_token"`` or ``"signed"``.
        bound_exponent: beta >= 1 of the evidence upper bound.
        bound_mixture: share of the upper bound in what negative advantages see; the rest is the linear mixture.
    """

    kind: str = "per_draw"
    bound_exponent: float = 1.5
    bound_mixture: float = 1.0

    def __call__(
        self,
        logps: Float[Tensor, "b S L"],
        target: Bool[Tensor, "b S L"],
        weight: Float[Tensor, "b S L"],
        advantages: Float[Tensor, " b"],
    ) -> Float[Tensor, "b L"]:
        """The estimate of each token's log-likelihood in nats; 0 where no draw scores the token."""
        lower = linear(logps, target, weight)
        if self.kind != "signed":
            return lower
        upper = upper_bound(logps, target, weight, self.bound_exponent)
        mixed = self.bound_mixture * upper + (1 - self.bound_mixture) * lower
        return torch.where(advantages[:, None] < 0, mixed, lower)


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
