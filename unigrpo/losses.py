"""The clipped, KL-regularised policy loss. It sees log-probabilities, never a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def kl_estimate(ref_logps: Tensor, logps: Tensor, estimator: str) -> Tensor:
    """Elementwise estimate of KL(policy || reference) from samples of the policy, nats.

    With x = ref - policy: k1 = -x, k2 = x^2 / 2, k3 = exp(x) - x - 1 (http://joschu.net/blog/kl-approx.html).
    """
    x = ref_logps - logps
    if estimator == "k1":
        return -x
    if estimator == "k2":
        return 0.5 * x.square()
    return torch.expm1(x) - x


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """A unit's loss by row, and detached statistics.

    Attributes:
        rows: ``[b]`` loss of each row, with gradient.
        kl: ``[b]`` mean KL of each row's scored tokens (or of its sequence), 0 without a reference.
        ratio: ratios that entered the surrogate, ``[m]``.
        clipped_low, clipped_high: ``[m]`` bool, ratios outside the range on the side where clipping acts.
    """

    rows: Tensor
    kl: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """UniGRPO's objective (arXiv 2505.15809, Eq. 5), as a loss.

    ``-min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A) + beta KL`` with r = exp(log p - log p_old) on the same masked
    input. At ``level="token"`` it is averaged over a row's tokens; at ``"sequence"`` (built on Eq. 4) r and KL are made
    of the row's mean log-probabilities, at ``"sequence_sum"`` of their sums. An exact KL stays a mean over tokens.

    Args:
        normalization: ``"masked"`` divides a row by its scored tokens, ``"completion"`` by the literal |o_i|.
    """

    epsilon: float
    epsilon_high: float
    beta: float = 0.0
    kl_estimator: str = "k3"
    level: str = "token"
    normalization: str = "masked"

    def __call__(
        self,
        logps: Float[Tensor, "b L"],
        old_logps: Float[Tensor, "b L"],
        ref_logps: Float[Tensor, "b L"] | None,
        advantages: Float[Tensor, " b"],
        target: Bool[Tensor, "b L"],
        weight: Float[Tensor, "b L"],
        completion_length: Float[Tensor, " b"],
        exact_kl: Float[Tensor, "b L"] | None = None,
    ) -> LossTerms:
        """``exact_kl`` takes the place of the estimate from ``ref_logps``.

        Values outside ``target`` are ignored and may be anything finite; a row without a target has loss 0."""
        weight = weight * target
        count = target.sum(dim=1).clamp(min=1).to(logps.dtype)
        delta = torch.where(target, logps - old_logps, 0.0)
        reference = torch.zeros_like(delta)
        if ref_logps is not None:
            reference = torch.where(target, ref_logps - logps, 0.0)
        scored = target
        advantages = advantages[:, None]
        token_kl = None if exact_kl is None else torch.where(target, exact_kl, 0.0)
        if self.level != "token":
            share = 1.0 / count[:, None] if self.level == "sequence" else 1.0
            delta = (delta * weight).sum(dim=1, keepdim=True) * share
            reference = (reference * weight).sum(dim=1, keepdim=True) * share
            if token_kl is not None:
                token_kl = (token_kl * weight).sum(dim=1, keepdim=True) / count[:, None]
            scored = target.any(dim=1, keepdim=True)
            weight = scored.to(logps.dtype)
            count = torch.ones_like(count)
        ratio = delta.exp()
        low, high = ratio < 1 - self.epsilon, ratio > 1 + self.epsilon_high
        surrogate = torch.minimum(
            ratio * advantages, ratio.clamp(1 - self.epsilon, 1 + self.epsilon_high) * advantages
        )
        kl = token_kl
        if kl is None:
            kl = kl_estimate(reference, torch.zeros_like(reference), self.kl_estimator)
        divisor = count
        if self.level == "token" and self.normalization == "completion":
            divisor = completion_length.clamp(min=1).to(logps.dtype)
        rows = ((self.beta * kl - surrogate) * weight).sum(dim=1) / divisor
        return LossTerms(
            rows=rows,
            kl=(kl * scored).sum(dim=1).detach() / count,
            ratio=ratio[scored].detach(),
            clipped_low=(low & (advantages < 0))[scored],
            clipped_high=(high & (advantages > 0))[scored],
        )
