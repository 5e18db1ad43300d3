"""What a ratio and an advantage are made into. ``SURROGATES`` is the one place to add a surrogate.

A surrogate is maximised. It works on the entries of one ratio level, tokens or whole sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """The clip range [1 - low, 1 + high], and ``delta``, the largest ratio that a negative advantage may meet."""

    low: float
    high: float
    delta: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """``value``, to be maximised, and where clipping holds its gradient back below and above; all of one shape."""

    value: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


def _free(value: Tensor) -> Objective:
    nowhere = torch.zeros_like(value, dtype=torch.bool)
    return Objective(value=value, clipped_low=nowhere, clipped_high=nowhere)


def ppo(log_ratio: Tensor, logps: Tensor, advantages: Tensor, clip: Clip) -> Objective:
    """min(r A, clip(r, 1 - low, 1 + high) A), PPO (arXiv 1707.06347); asymmetric as in DAPO (2503.14476).

    With ``delta`` r is first cut at delta, which bounds the loss of negative advantages: dual-clip PPO (1912.09729),
    TRL's ``delta``.

    A ratio too large for its type has the value of its bound and gradient 0 where it is bounded; of a negative advantage
    without ``delta`` the value is -inf.
    """
    largest = math.floor(math.log(torch.finfo(log_ratio.dtype).max))
    # Where a bound holds the gradient back, 0 times an infinite ratio would make it NaN.
    bounded = (advantages >= 0) | (clip.delta is not None)
    ratio = log_ratio.clamp(max=torch.where(bounded, largest, torch.inf)).exp()
    low, high = (ratio < 1 - clip.low) & (advantages < 0), (ratio > 1 + clip.high) & (advantages > 0)
    clipped = ratio.clamp(1 - clip.low, 1 + clip.high)
    if clip.delta is not None:
        high = high | ((ratio > clip.delta) & (advantages < 0))
        ratio = ratio.clamp(max=clip.delta)
    return Objective(value=torch.minimum(ratio * advantages, clipped * advantages), clipped_low=low, clipped_high=high)


def cispo(log_ratio: Tensor, logps: Tensor, advantages: Tensor, clip: Clip) -> Objective:
    """sg(min(r, 1 + high)) A log p: every token keeps a gradient, its weight is bounded. CISPO, arXiv 2506.13585.

    Only the upper bound acts, as in the paper's runs. TRL writes the bound itself into ``epsilon_high``; here it is
    1 + ``epsilon_high`` as in the paper.
    """
    ratio = log_ratio.detach().exp()
    high = ratio > 1 + clip.high
    value = ratio.clamp(max=1 + clip.high) * advantages * logps
    return Objective(value=value, clipped_low=torch.zeros_like(high), clipped_high=high)


def log_likelihood(log_ratio: Tensor, logps: Tensor, advantages: Tensor, clip: Clip) -> Objective:
    """A log p, without a ratio: wd1 (arXiv 2507.08838), SPG (2510.09541) and plain REINFORCE."""
    return _free(advantages * logps)


def linear_bound(log_ratio: Tensor, logps: Tensor, advantages: Tensor, clip: Clip) -> Objective:
    """A (1 + d) for A >= 0 and A exp(d) for A < 0 with d = log r: BGPO's lower bound of r A (arXiv 2510.11683)."""
    linear = advantages >= 0
    # The exponential that is not chosen must be finite, or its gradient is 0 times inf.
    exponential = torch.where(linear, 0.0, log_ratio).exp()
    return _free(advantages * torch.where(linear, 1 + log_ratio, exponential))


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A formula, and whether it compares with the old policy: one that does not needs no old pass."""

    formula: Callable[[Tensor, Tensor, Tensor, Clip], Objective]
    uses_ratio: bool = True


SURROGATES = {
    "ppo": Surrogate(ppo),
    "cispo": Surrogate(cispo),
    "log_likelihood": Surrogate(log_likelihood, uses_ratio=False),
    "linear_bound": Surrogate(linear_bound),
}
