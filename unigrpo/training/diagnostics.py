"""Whether training is healthy: what one unit's loss and one window's noise and old log-probabilities say."""

from __future__ import annotations

import torch
from torch import Tensor

from ..algorithm.loss import LossTerms
from ..config.build import Algorithm
from ..models.draw import TokenScores
from ..models.placing import places_of
from ..types import Experience
from .batches import Batch
from .metrics import Metrics


FIFTHS = ("0.0-0.2", "0.2-0.4", "0.4-0.6", "0.6-0.8", "0.8-1.0")
"""Ranges of the hidden share of an answer; all but the last leave out their upper end."""

KL_TOKENS = 64
"""Scored tokens of a unit whose whole distributions are compared once a window: 64 x 134,656 fp32 are 34 MB."""


def loss_metrics(metrics: Metrics, algorithm: Algorithm, batch: Batch, scores: TokenScores, terms: LossTerms) -> None:
    """``kl``, ``entropy``, ``ratio/*``, ``clip_ratio/*`` and ``sampling/sampling_logp_difference/*`` of one unit.

    ``batch`` is ``old_policy.compared``'s.
    """
    task, count = batch.canvas.task, sum(batch.counts)
    if not count:
        return
    if algorithm.settings.beta > 0:
        metrics.add("kl", terms.kl.mean(), task, terms.kl.numel())
    places = places_of(batch.target, count)
    metrics.add("entropy", scores.entropy.flatten()[places].mean(), task, count)
    if algorithm.uses_ratio:
        ratio_metrics(metrics, terms, task, _ratios_of(algorithm, batch))
    if batch.sampling_logps is not None:
        drawn, trained = (own.flatten()[places] for own in (batch.sampling_logps, batch.old_logps))
        sampling_metrics(metrics, drawn, trained, task)


def _ratios_of(algorithm: Algorithm, batch: Batch) -> int | None:
    """How many ratios entered the surrogate, as the host counted them; None = to be asked."""
    if algorithm.settings.importance_sampling_level != "token":
        return None
    return batch.ratios if algorithm.mixes_draws else sum(batch.counts)


def ratio_metrics(metrics: Metrics, terms: LossTerms, task: str, count: int | None = None) -> None:
    """How far the m ratios of a unit have moved, and how many of them clipping holds back.

    ``ratio/ess`` is the share of them that carries the unit: (sum r)^2 / (m sum r^2), 1 where all are equal, 1 / m where
    one outweighs the rest. Without a ratio nothing is recorded; statistics of infinite ratios that are no number are not.
    ``count`` = m, where the host knows it.
    """
    ratio, low, high = terms.entered(count)
    if not ratio.numel():
        return
    ratio, count = ratio.double(), len(ratio)
    metrics.add("clip_ratio/low_mean", low.float().mean(), task, count)
    metrics.add("clip_ratio/high_mean", high.float().mean(), task, count)
    metrics.add("clip_ratio/region_mean", (low | high).float().mean(), task, count)
    metrics.add("ratio/mean", ratio.mean(), task, count)
    metrics.add("ratio/max", ratio.max(), task)
    metrics.add("ratio/ess", ratio.sum().square() / (count * ratio.square().sum()), task, count)
    if count > 1:
        metrics.add("ratio/std", ratio.std(), task, count)


def sampling_metrics(metrics: Metrics, sampling_logps: Tensor, old_logps: Tensor, task: str) -> None:
    """``sampling/sampling_logp_difference/{mean,max}``: |log p when drawn - log p as trained|, of the same policy.

    The two see a token in different contexts: the sampler with what was written before it, a random mask with any part
    of the answer. So it measures the noising as well as the arithmetic, and is 0 only where the noise repeats the
    rollout step by step (``trajectory`` with ``trajectory_shrink=1``, ``autoregressive`` after ``left_to_right``), at the
    same temperature and guidance, and the policy has a mask id.
    """
    difference = (sampling_logps - old_logps).abs()
    if difference.numel():
        metrics.add("sampling/sampling_logp_difference/mean", difference.mean(), task, difference.numel())
        metrics.add("sampling/sampling_logp_difference/max", difference.max(), task)


def window_metrics(metrics: Metrics, experiences: list[Experience]) -> None:
    """``mask_ratio/*`` and ``estimator/std`` of a window, old log-probabilities included where they are known."""
    for suffix, own in metrics.scopes([one.task for one in experiences]):
        members = [one for one, counts in zip(experiences, own.tolist(), strict=True) if counts]
        fifths = torch.cat([hidden_fifths(one) for one in members])
        for number, name in enumerate(FIFTHS):
            metrics.add(f"mask_ratio/{name}{suffix}", (fifths == number).float().mean(), weight=len(fifths))
        spreads = [float(own.std()) for own in map(estimates, members) if len(own) > 1]
        if spreads:
            metrics.add(f"estimator/std{suffix}", sum(spreads) / len(spreads), weight=len(spreads))


def hidden_fifths(experience: Experience) -> Tensor:
    """The fifth, 0 to 4, in which the hidden share of the answer lies, of each draw that scores something."""
    hidden = (experience.hidden & experience.completion_mask).sum(dim=-1)[experience.target.any(dim=-1)]
    # Whole numbers: in floats 3 of 5 tokens may be a little more or less than 0.6.
    return (5 * hidden // experience.completion_mask.sum().clamp(min=1)).clamp(max=len(FIFTHS) - 1)


def estimates(experience: Experience) -> Tensor:
    """The mean scored log-probability under the old policy, of each draw with a computed one."""
    if experience.old_logps is None or experience.old_known is None:
        return torch.zeros(0)
    scored = experience.target & experience.old_known[:, None, None]
    count = scored.sum(dim=-1)
    means = (experience.old_logps * scored).sum(dim=-1) / count.clamp(min=1)
    return means[count > 0]


def thinned(target: Tensor, most: int = KL_TOKENS) -> Tensor:
    """At most ``most`` of the True positions, evenly spaced over the rows."""
    number = target.flatten().cumsum(0).view(target.shape) - 1
    every = -(-int(target.sum()) // most)
    return target & (number % max(every, 1) == 0)
