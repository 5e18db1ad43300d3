"""What a ratio and an advantage are made into. ``SURROGATES`` is the one place to add a surrogate.

A surrogate is maximised. It is called with log-ratios, log-probabilities and advantages, all of one shape, the entries of one
ratio level (tokens or whole sequences), and returns an ``Objective``, or its value alone where nothing is clipped. One of your
own is a function of these three, or a frozen dataclass whose fields are its keys, named ``pkg.mod:attr`` in a recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..parts import check_keys, key


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """``value``, to be maximised, and where clipping holds its gradient back below and above; all of one shape."""

    value: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


def objective_of(result: Objective | Tensor) -> Objective:
    """What a surrogate returned as an ``Objective``; a bare value clips nowhere."""
    if isinstance(result, Objective):
        return result
    nowhere = torch.zeros_like(result, dtype=torch.bool)
    return Objective(value=result, clipped_low=nowhere, clipped_high=nowhere)


EPSILON = "clip range [1 - epsilon, 1 + epsilon_high]; none = 0.2, of the mean ratio of a sequence 0.001"
EPSILON_HIGH = "upper end of the clip range, as its distance from 1; none = epsilon"


@dataclass(frozen=True, slots=True, kw_only=True)
class PPO:
    """min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A), PPO (arXiv 1707.06347); asymmetric as in DAPO (2503.14476).

    With ``delta`` r is first cut at delta, which bounds the loss of negative advantages: dual-clip PPO (1912.09729),
    TRL's ``delta``.

    A ratio too large for its type has the value of its bound and gradient 0 where it is bounded; of a negative advantage
    without ``delta`` the value is -inf.

    Attributes:
        uses_ratio: whether the old policy is compared with; a surrogate that does not needs no old pass.
    """

    uses_ratio: ClassVar[bool] = True

    epsilon: float = key(0.2, EPSILON, above=0, below=1)
    epsilon_high: float | None = key(None, EPSILON_HIGH, above=0)
    delta: float | None = key(None, "largest ratio that a negative advantage may meet (dual clip); none = no bound")

    def __post_init__(self) -> None:
        check_keys(self)
        least = 1 + (self.epsilon_high or self.epsilon)
        if self.delta is not None and self.delta <= least:
            raise ValueError(f"delta={self.delta} must be greater than {least}")

    def __call__(self, log_ratio: Tensor, logps: Tensor, advantages: Tensor) -> Objective:
        """The objective of each entry."""
        least, most = 1 - self.epsilon, 1 + (self.epsilon_high or self.epsilon)
        largest = math.floor(math.log(torch.finfo(log_ratio.dtype).max))
        # Where a bound holds the gradient back, 0 times an infinite ratio would make it NaN.
        bounded = (advantages >= 0) | (self.delta is not None)
        ratio = log_ratio.clamp(max=torch.where(bounded, largest, torch.inf)).exp()
        low, high = (ratio < least) & (advantages < 0), (ratio > most) & (advantages > 0)
        clipped = ratio.clamp(least, most)
        if self.delta is not None:
            high = high | ((ratio > self.delta) & (advantages < 0))
            ratio = ratio.clamp(max=self.delta)
        value = torch.minimum(ratio * advantages, clipped * advantages)
        return Objective(value=value, clipped_low=low, clipped_high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class CISPO:
    """sg(min(r, 1 + epsilon_high)) A log p: every token keeps a gradient, its weight is bounded. CISPO, arXiv 2506.13585.

    Only the upper bound acts, as in the paper's runs. TRL writes the bound itself into ``epsilon_high``; here it is
    1 + ``epsilon_high`` as in the paper.
    """

    uses_ratio: ClassVar[bool] = True

    epsilon: float = key(0.2, EPSILON, above=0, below=1)
    epsilon_high: float | None = key(None, EPSILON_HIGH, above=0)

    def __post_init__(self) -> None:
        check_keys(self)

    def __call__(self, log_ratio: Tensor, logps: Tensor, advantages: Tensor) -> Objective:
        """The objective of each entry."""
        most = 1 + (self.epsilon_high or self.epsilon)
        ratio = log_ratio.detach().exp()
        high = ratio > most
        value = ratio.clamp(max=most) * advantages * logps
        return Objective(value=value, clipped_low=torch.zeros_like(high), clipped_high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLikelihood:
    """A log p, without a ratio: wd1 (arXiv 2507.08838), SPG (2510.09541) and plain REINFORCE."""

    uses_ratio: ClassVar[bool] = False

    def __call__(self, log_ratio: Tensor, logps: Tensor, advantages: Tensor) -> Tensor:
        """The objective of each entry."""
        return advantages * logps


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearBound:
    """A (1 + d) for A >= 0 and A exp(d) for A < 0 with d = log r: BGPO's lower bound of r A (arXiv 2510.11683)."""

    uses_ratio: ClassVar[bool] = True

    def __call__(self, log_ratio: Tensor, logps: Tensor, advantages: Tensor) -> Tensor:
        """The objective of each entry."""
        linear = advantages >= 0
        # The exponential that is not chosen must be finite, or its gradient is 0 times inf.
        exponential = torch.where(linear, 0.0, log_ratio).exp()
        return advantages * torch.where(linear, 1 + log_ratio, exponential)


SURROGATES: dict[str, Callable] = {
    "ppo": PPO,
    "cispo": CISPO,
    "log_likelihood": LogLikelihood,
    "linear_bound": LinearBound,
}


def uses_ratio(surrogate: Callable) -> bool:
    """Whether ``surrogate`` compares with the old policy; a function that does not say is taken to."""
    return getattr(surrogate, "uses_ratio", True)
