"""The policy loss. It sees log-probabilities, never a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..models.placing import places_of
from ..parts import check_keys, internal, key
from .mixing import PerDraw
from .surrogates import PPO, objective_of


WITH_KL = ("beta > 0", lambda own: own.beta > 0)
"""When a key of the KL is read."""


def _at_least_fp32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def kl_estimate(ref_logps: Tensor, logps: Tensor, estimator: str) -> Tensor:
    """Elementwise estimate of KL(policy || reference) from samples of the policy, nats.

    With x = ref - policy: k1 = -x, k2 = x^2 / 2, k3 = exp(x) - x - 1 (http://joschu.net/blog/kl-approx.html). Half-precision
    inputs are compared in fp32. k3 of x > 88 is inf in fp32.
    """
    x = _at_least_fp32(ref_logps) - _at_least_fp32(logps)
    if estimator == "k1":
        return -x
    if estimator == "k2":
        return 0.5 * x.square()
    if estimator == "k3":
        return torch.expm1(x) - x
    raise ValueError(f"kl_estimator={estimator!r} is no estimate from samples: choose k1, k2 or k3")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """A unit's loss by row, and detached statistics.

    Attributes:
        rows: ``[b]`` loss of each row, with gradient.
        kl: ``[b]`` mean KL of each row's scored tokens (or of its sequence), 0 without a reference.
        ratios: ``[b, n]``, of tokens or sequences.
        low, high: ``[b, n]`` bool, ratios outside the range on the side where clipping acts.
        scored: ``[b, n]`` bool, those of the ratios that entered the surrogate.
    """

    rows: Tensor
    kl: Tensor
    ratios: Tensor
    low: Tensor
    high: Tensor
    scored: Tensor

    def entered(self, count: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """``ratios``, ``low`` and ``high`` of the m that entered the surrogate, ``[m]``; ``count`` = m where it is known."""
        places = places_of(self.scored, count)
        return tuple(own.flatten()[places] for own in (self.ratios, self.low, self.high))

    @property
    def ratio(self) -> Tensor:
        """Ratios that entered the surrogate, ``[m]``."""
        return self.entered()[0]

    @property
    def clipped_low(self) -> Tensor:
        """``[m]`` bool, as ``low``."""
        return self.entered()[1]

    @property
    def clipped_high(self) -> Tensor:
        """``[m]`` bool, as ``high``."""
        return self.entered()[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Values:
    """Log-likelihoods ``[b, n]`` that enter one ratio each: n = L tokens, or 1 sequence."""

    logps: Tensor
    log_ratio: Tensor
    reference: Tensor
    kl: Tensor | None
    scored: Tensor
    weight: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """-surrogate(r, A) + beta KL with r = exp(log p - log p_old) on the same masked input.

    With the defaults it is UniGRPO's objective (arXiv 2505.15809, Eq. 5). At level ``"token"`` it is averaged over a
    row's tokens; at ``"sequence"`` (built on Eq. 4) r and KL are made of the row's mean log-probabilities, at
    ``"sequence_sum"`` of their sums. An exact KL stays a mean over tokens.

    Args:
        surrogate: see ``surrogates``.
        reduce: how the draws of a row are mixed, see ``mixing``.
        max_length: what ``"dr_grpo"`` divides by; ``"dapo"`` and ``"bnpo"`` divide by the mean tokens a row that the call gets.
    """

    beta: float = key(0.0, "weight of the KL to the reference; 0 loads no reference", at_least=0)
    kl_estimator: str = key(
        "k3",
        'estimate of the KL: "k1", "k2", "k3", or "exact", the categorical KL over the whole token space',
        choices=("k1", "k2", "k3", "exact"),
        read_if=WITH_KL,
    )
    kl_level: str = key(
        "ratio",
        """of sequences, the KL is estimated from what the ratio is made of ("ratio"), or from the summed log-ratio and divided
        by the length ("sum")""",
        choices=("ratio", "sum"),
        read_if=(
            "beta > 0 and sequence levels",
            lambda own: own.beta > 0 and own.importance_sampling_level != "token",
        ),
    )
    importance_sampling_level: str = key(
        "token",
        """one ratio a "token", a "sequence" (exp of the mean log-ratio; GSPO) or, with one update a rollout only,
        "sequence_sum" (exp of the summed log-ratio)""",
        choices=("token", "sequence", "sequence_sum"),
    )
    length_normalization: str = key(
        "masked",
        'a row\'s tokens are its "masked" ones or its whole "completion"; also the length in the mean of a sequence',
        choices=("masked", "completion"),
    )
    log_ratio_clip: float | None = key(
        None,
        "log-ratios to the old policy and to the reference, of tokens or sequences, are cut to +-this; none = not",
        above=0,
        read_if=("a ratio or a KL", lambda own: own.uses_ratio or own.beta > 0),
    )
    loss_type: str = key(
        "grpo",
        """tokens are averaged in their row, then rows ("grpo"); over all tokens of the optimizer step ("dapo") or of the
        micro-batch ("bnpo"), each task by itself; or divided by max_completion_length ("dr_grpo"). TRL's names; its "cispo" is
        a surrogate here""",
        choices=("grpo", "bnpo", "dr_grpo", "dapo"),
    )
    surrogate: Callable[..., Any] = internal(PPO())
    reduce: Any = internal(PerDraw())
    max_length: int | None = internal(None)

    def __post_init__(self) -> None:
        check_keys(self)

    def __call__(
        self,
        logps: Float[Tensor, "m L"],
        old_logps: Float[Tensor, "m L"],
        ref_logps: Float[Tensor, "m L"] | None,
        advantages: Float[Tensor, " b"],
        target: Bool[Tensor, "m L"],
        weight: Float[Tensor, "m L"],
        completion_length: Float[Tensor, " b"],
        exact_kl: Float[Tensor, "m L"] | None = None,
        scored_tokens: Float[Tensor, " b"] | None = None,
        tokens_per_row: float | None = None,
    ) -> LossTerms:
        """Terms of b rows with S = m / b draws each, a row's draws adjacent.

        Args:
            exact_kl: takes the place of the estimate from ``ref_logps``.
            scored_tokens: the row's scored tokens where this call sees a part of its draws; None = counted here.
            tokens_per_row: mean scored tokens a row, for ``"dapo"`` and ``"bnpo"``.

        Values outside ``target`` are ignored and may be anything; a row without a target has loss 0 and no gradient.
        Half-precision log-probabilities are computed with in fp32. A loss that no bound holds back may overflow: it is then
        infinite or NaN, never a finite number with a NaN gradient.

        Raises:
            ValueError: ``"dr_grpo"`` without ``max_length``, ``"dapo"`` or ``"bnpo"`` without ``tokens_per_row``.
        """
        logps, old_logps = _at_least_fp32(logps), _at_least_fp32(old_logps)
        ref_logps, exact_kl = (None if own is None else _at_least_fp32(own) for own in (ref_logps, exact_kl))
        values = self._values(
            logps, old_logps, ref_logps, exact_kl, target, weight, advantages, completion_length, scored_tokens
        )
        lengths, advantages = values.lengths, advantages[:, None]
        if self.importance_sampling_level != "token":
            values = self._as_sequences(values)
        log_ratio, reference = self._cut(values.log_ratio), self._cut(values.reference)
        objective = objective_of(self.surrogate(log_ratio, values.logps, advantages))
        kl = self._kl(values.kl, reference, lengths)
        total = ((self.beta * kl - objective.value) * values.weight).sum(dim=1)
        scored = values.scored
        return LossTerms(
            rows=total / self._divisor(lengths, tokens_per_row),
            kl=(kl * scored).sum(dim=1).detach() / scored.sum(dim=1).clamp(min=1),
            ratios=log_ratio.detach().exp(),
            low=objective.clipped_low,
            high=objective.clipped_high,
            scored=scored,
        )

    def _kl(self, exact: Tensor | None, reference: Tensor, lengths: Tensor) -> Tensor:
        """The exact KL where there is one, else the estimate from log-ratios to the reference; 0 where it has no weight."""
        if exact is not None or self.beta == 0:
            return torch.zeros_like(reference) if exact is None else exact
        scale = lengths[:, None] if self.kl_level == "sum" and self.importance_sampling_level != "token" else 1.0
        sums = reference * (scale if self.importance_sampling_level == "sequence" else 1.0)
        return kl_estimate(sums, torch.zeros_like(sums), self.kl_estimator) / scale

    def _cut(self, log_ratio: Tensor) -> Tensor:
        return log_ratio if self.log_ratio_clip is None else log_ratio.clamp(-self.log_ratio_clip, self.log_ratio_clip)

    def _values(
        self,
        logps: Tensor,
        old_logps: Tensor,
        ref_logps: Tensor | None,
        exact_kl: Tensor | None,
        target: Tensor,
        weight: Tensor,
        advantages: Tensor,
        completion_length: Tensor,
        scored_tokens: Tensor | None,
    ) -> _Values:
        """Per token, with the draws mixed where ``reduce`` mixes them."""
        weight = weight * target
        if self.reduce.mixes:
            shape = (len(advantages), -1, logps.shape[1])
            draws, weights = target.view(shape), weight.view(shape)

            def mix(values: Tensor | None) -> Tensor | None:
                return None if values is None else self.reduce(values.view(shape), draws, weights, advantages)

            if exact_kl is not None:
                seen = draws.sum(dim=1).clamp(min=1)
                exact_kl = torch.where(draws, exact_kl.view(shape), 0.0).sum(dim=1) / seen
            logps, old_logps, ref_logps = mix(logps), mix(old_logps), mix(ref_logps)
            target = draws.any(dim=1)
            weight = target.to(logps.dtype)
        count = target.sum(dim=1) if scored_tokens is None else scored_tokens
        lengths = completion_length if self.length_normalization == "completion" else count
        zeros = torch.zeros_like(logps)
        return _Values(
            logps=torch.where(target, logps, 0.0),
            log_ratio=torch.where(target, logps - old_logps, 0.0),
            reference=zeros if ref_logps is None else torch.where(target, ref_logps - logps, 0.0),
            kl=None if exact_kl is None else torch.where(target, exact_kl, 0.0),
            scored=target,
            weight=weight,
            lengths=lengths.clamp(min=1).to(logps.dtype),
        )

    def _as_sequences(self, values: _Values) -> _Values:
        """Sums or means over each row's tokens, ``[b, 1]``."""
        share = 1.0 / values.lengths[:, None] if self.importance_sampling_level == "sequence" else 1.0

        def pooled(tokens: Tensor) -> Tensor:
            return (tokens * values.weight).sum(dim=1, keepdim=True)

        scored = values.scored.any(dim=1, keepdim=True)
        return _Values(
            logps=pooled(values.logps) * share,
            log_ratio=pooled(values.log_ratio) * share,
            reference=pooled(values.reference) * share,
            kl=None if values.kl is None else pooled(values.kl) / values.lengths[:, None],
            scored=scored,
            weight=scored.to(values.weight.dtype),
            lengths=torch.ones_like(values.lengths),
        )

    def _divisor(self, lengths: Tensor, tokens_per_row: float | None) -> Tensor | float:
        """What a row's sum is divided by. Where tokens are counted, a sequence's mean stands for all of its tokens."""
        sequence = self.importance_sampling_level != "token"
        if self.loss_type == "grpo":
            return 1.0 if sequence else lengths
        constant = self.max_length if self.loss_type == "dr_grpo" else tokens_per_row
        if not constant:
            needed = "max_length" if self.loss_type == "dr_grpo" else "tokens_per_row"
            raise ValueError(f"loss_type={self.loss_type!r} needs {needed}, got {constant}")
        return constant / lengths if self.importance_sampling_level == "sequence" else float(constant)
