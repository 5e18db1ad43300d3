"""The policy loss. It sees log-probabilities, never a model."""

# Annotations are read when a record is made: shapes that do not belong together are refused under pytest.
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..models.draw import TokenScores
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
class LossBatch:
    """What a loss is told of b rows with S = m / b draws each, a row's draws adjacent.

    Attributes:
        advantages: one a row.
        target: True = scored. What else stands outside of it, in any field, is ignored and may be anything.
        weight: coefficient of each scored log-probability.
        completion_length: the literal |o_i|.
        old_logps: of the policy that the ratio is to.
        ref_logps: of the reference; None without one.
        scored_tokens: of each row, where this batch holds a part of its draws; None = counted in ``target``.
        tokens_per_row: mean scored tokens a row, for ``"dapo"`` and ``"bnpo"``.
    """

    advantages: Float[Tensor, " b"]
    target: Bool[Tensor, "m L"]
    weight: Float[Tensor, "m L"]
    completion_length: Float[Tensor, " b"]
    old_logps: Float[Tensor, "m L"] | None
    ref_logps: Float[Tensor, "m L"] | None = None
    scored_tokens: Float[Tensor, " b"] | None = None
    tokens_per_row: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """A unit's loss by row, and detached statistics.

    Attributes:
        losses: ``[b]``, of each row, with gradient.
        kl: ``[b]`` mean KL of each row's scored tokens (or of its sequence), 0 without a reference.
        ratios: ``[b, n]``, of tokens or sequences.
        low, high: ``[b, n]`` bool, ratios outside the range on the side where clipping acts.
        scored: ``[b, n]`` bool, those of the ratios that entered the surrogate.
    """

    losses: Tensor
    kl: Tensor
    ratios: Tensor
    low: Tensor
    high: Tensor
    scored: Tensor

    def entered(self, count: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """``ratios``, ``low`` and ``high`` of the m that entered the surrogate, ``[m]``; ``count`` = m where it is known."""
        places = places_of(self.scored, count)
        return self.ratios.flatten()[places], self.low.flatten()[places], self.high.flatten()[places]

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


def _in_fp32(batch: LossBatch, scores: TokenScores) -> tuple[LossBatch, TokenScores]:
    """Log-probabilities and an exact KL in fp32 at least."""
    batch = replace(batch, old_logps=_roomy(batch.old_logps), ref_logps=_roomy(batch.ref_logps))
    return batch, scores._replace(logps=_at_least_fp32(scores.logps), kl=_roomy(scores.kl))


def _roomy(values: Tensor | None) -> Tensor | None:
    return None if values is None else _at_least_fp32(values)


def _pooled(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums over each row's tokens, ``[b, 1]``."""
    return (values * weight).sum(dim=1, keepdim=True)


def _at(target: Bool[Tensor, "b L"], values: Float[Tensor, "b L"]) -> Float[Tensor, "b L"]:
    """``values`` where they are scored, 0 elsewhere."""
    return torch.where(target, values, 0.0)


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

    def __call__(self, batch: LossBatch, scores: TokenScores) -> LossTerms:
        """The terms of a ``batch`` whose tokens have the new ``scores`` ``[m, L]``.

        An exact KL among the scores takes the place of the estimate from ``ref_logps``. A row without a target has loss 0 and
        no gradient. Half-precision log-probabilities are computed with in fp32. A loss that no bound holds back may
        overflow: it is then infinite or NaN, never a finite number with a NaN gradient.

        Raises:
            ValueError: ``"dr_grpo"`` without ``max_length``, ``"dapo"`` or ``"bnpo"`` without ``tokens_per_row``; a ``beta``
                without anything to take the KL to.
        """
        if self.beta > 0 and batch.ref_logps is None and scores.kl is None:
            raise ValueError(
                f"beta={self.beta} needs the reference's log-probabilities, and the window has none: it was sampled with "
                "beta=0. Set beta back, or start a new run"
            )
        batch, scores = self._mixed(*_in_fp32(batch, scores))
        target, weight = batch.target, batch.weight
        assert batch.old_logps is not None, "a loss compares with old_logps; without an old pass they are the new ones"
        count = target.sum(dim=1) if batch.scored_tokens is None else batch.scored_tokens
        lengths = batch.completion_length if self.length_normalization == "completion" else count
        lengths = lengths.clamp(min=1).to(scores.logps.dtype)
        logps = _at(target, scores.logps)
        log_ratio = _at(target, scores.logps - batch.old_logps)
        reference = torch.zeros_like(logps)
        if batch.ref_logps is not None:
            reference = _at(target, batch.ref_logps - scores.logps)
        exact = None if scores.kl is None else _at(target, scores.kl)
        if self.importance_sampling_level != "token":
            share = 1.0 / lengths[:, None] if self.importance_sampling_level == "sequence" else 1.0
            logps, log_ratio, reference = (_pooled(own, weight) * share for own in (logps, log_ratio, reference))
            exact = None if exact is None else _pooled(exact, weight) / lengths[:, None]
            target = target.any(dim=1, keepdim=True)
            weight = target.to(weight.dtype)
        log_ratio, reference = self._cut(log_ratio), self._cut(reference)
        objective = objective_of(self.surrogate(log_ratio, logps, batch.advantages[:, None]))
        kl = self._kl(exact, reference, lengths)
        total = ((self.beta * kl - objective.value) * weight).sum(dim=1)
        return LossTerms(
            losses=total / self._divisor(lengths, batch.tokens_per_row),
            kl=(kl * target).sum(dim=1).detach() / target.sum(dim=1).clamp(min=1),
            ratios=log_ratio.detach().exp(),
            low=objective.clipped_low,
            high=objective.clipped_high,
            scored=target,
        )

    def _mixed(self, batch: LossBatch, scores: TokenScores) -> tuple[LossBatch, TokenScores]:
        """One row of tokens a row, ``[b, L]``, where ``reduce`` mixes the draws; weights are 0 outside the target."""
        weight = batch.weight * batch.target
        if not self.reduce.mixes:
            return replace(batch, weight=weight), scores
        shape = (len(batch.advantages), -1, scores.logps.shape[1])
        draws, weights = batch.target.view(shape), weight.view(shape)

        def mix(values: Tensor) -> Tensor:
            return self.reduce(values.view(shape), draws, weights, batch.advantages)

        exact = scores.kl
        if exact is not None:
            seen = draws.sum(dim=1).clamp(min=1)
            exact = torch.where(draws, exact.view(shape), 0.0).sum(dim=1) / seen
        scores = scores._replace(logps=mix(scores.logps), kl=exact)
        target = draws.any(dim=1)
        mixed = replace(
            batch,
            target=target,
            weight=target.to(scores.logps.dtype),
            old_logps=None if batch.old_logps is None else mix(batch.old_logps),
            ref_logps=None if batch.ref_logps is None else mix(batch.ref_logps),
        )
        return mixed, scores

    def _kl(self, exact: Tensor | None, reference: Tensor, lengths: Tensor) -> Tensor:
        """The exact KL where there is one, else the estimate from log-ratios to the reference; 0 where it has no weight."""
        if exact is not None or self.beta == 0:
            return torch.zeros_like(reference) if exact is None else exact
        scale = lengths[:, None] if self.kl_level == "sum" and self.importance_sampling_level != "token" else 1.0
        sums = reference * (scale if self.importance_sampling_level == "sequence" else 1.0)
        return kl_estimate(sums, torch.zeros_like(sums), self.kl_estimator) / scale

    def _cut(self, log_ratio: Tensor) -> Tensor:
        return log_ratio if self.log_ratio_clip is None else log_ratio.clamp(-self.log_ratio_clip, self.log_ratio_clip)

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
