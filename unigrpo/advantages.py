"""Group-relative advantages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


EPSILON = 1e-4
"""Added to every standard deviation, as in TRL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantages:
    """Result of ``group_advantages``, all ``[B]``.

    Attributes:
        values: advantage; 0 for a row without a reward.
        rewards: weighted sum of the rewards that applied, NaN where none did.
        group_std: std of ``rewards`` in the row's group, Bessel-corrected; 0 where fewer than two rows were scored.
        equal: True in groups whose scored rewards are all equal: they say nothing about the policy.
    """

    values: Tensor
    rewards: Tensor
    group_std: Tensor
    equal: Tensor


def group_moments(values: Tensor, population: bool = False) -> tuple[Tensor, Tensor]:
    """NaN-aware mean and std over the last dimension, kept; Bessel-corrected unless ``population``; std 0 of one value."""
    count = (~values.isnan()).sum(dim=-1, keepdim=True)
    mean = values.nanmean(dim=-1, keepdim=True)
    divisor = count if population else count - 1
    variance = ((values - mean) ** 2).nansum(dim=-1, keepdim=True) / divisor.clamp(min=1)
    return mean, torch.where(count > 1, variance, 0.0).sqrt()


def _centred(groups: Tensor, estimator: str, temperature: float) -> Tensor:
    """Rewards ``[N, G]`` minus their baseline; NaN stays NaN."""
    scored = ~groups.isnan()
    count = scored.sum(dim=1, keepdim=True)
    if estimator == "batch_mean":
        return groups - groups.nanmean()
    centred = groups - groups.nanmean(dim=1, keepdim=True)
    if estimator == "leave_one_out":
        # r_i - mean of the others = (r_i - mean) n / (n - 1); a single answer has no baseline.
        return torch.where(count > 1, centred * count / (count - 1).clamp(min=1), centred)
    if estimator == "softmax":
        scores = torch.where(scored, centred, -torch.inf) / temperature
        against = torch.where(scored, -centred, -torch.inf) / temperature
        return torch.where(scored, count * (scores.softmax(dim=1) - against.softmax(dim=1)), torch.nan)
    return centred


def group_advantages(
    rewards_per_func: Float[Tensor, "B F"],
    weights: Float[Tensor, " F"],
    num_generations: int,
    scale_rewards: str = "group",
    aggregation: str = "sum_then_normalize",
    *,
    estimator: str = "group_mean",
    temperature: float = 1.0,
    clip: float | None = None,
) -> Advantages:
    """A = (r - baseline) / (std + 1e-4); with the defaults UniGRPO Eq. 15 (arXiv 2505.15809).

    Args:
        rewards_per_func: raw rewards, NaN = the reward does not apply to the row. Rows of a group are adjacent.
        weights: one a reward.
        num_generations: G, rows in a group.
        scale_rewards: std of the ``"group"`` (with Bessel's correction), of the ``"group_population"`` (without), of the
            ``"batch"``, or ``"none"``.
        aggregation: ``"sum_then_normalize"``, or ``"normalize_then_sum"``: each reward is normalised in its group, the
            weighted sum is whitened over the batch; it takes no ``estimator``.
        estimator: the baseline: mean of the group (``"group_mean"``), of its other answers (``"leave_one_out"``,
            RLOO), of all groups (``"batch_mean"``), or wd1's weights G (softmax(A / psi) - softmax(-A / psi)) over the
            group (``"softmax"``, arXiv 2507.08838), which no std divides.
        temperature: psi.
        clip: advantages are cut to +-this, None = not at all.
    """
    applies = ~rewards_per_func.isnan()
    weighted = rewards_per_func * weights
    rewards = torch.where(applies.any(dim=1), weighted.nansum(dim=1), torch.nan)
    groups = rewards.view(-1, num_generations)
    spread = groups.nan_to_num(-torch.inf).amax(dim=1) - groups.nan_to_num(torch.inf).amin(dim=1)
    equal = (spread <= 0).repeat_interleave(num_generations)
    if aggregation == "normalize_then_sum":
        values = _normalised_each(rewards_per_func, weights, num_generations)
    else:
        values = _scaled(_centred(groups, estimator, temperature), groups, scale_rewards, estimator)
    values = values.reshape(-1).nan_to_num(0.0)
    if aggregation == "sum_then_normalize" and estimator != "batch_mean":
        # The mean of equal fp32 numbers can differ from them in the last digit; such a group has no preference.
        values = values.masked_fill(equal, 0.0)
    if clip is not None:
        values = values.clamp(-clip, clip)
    std = group_moments(groups)[1].expand_as(groups).reshape(-1)
    return Advantages(values=values, rewards=rewards, group_std=std, equal=equal)


def _scaled(values: Tensor, groups: Tensor, scale_rewards: str, estimator: str) -> Tensor:
    """``values [N, G]`` over the std that ``scale_rewards`` names; softmax weights have a scale of their own."""
    if estimator == "softmax" or scale_rewards == "none":
        return values
    if scale_rewards == "batch":
        return values / (group_moments(groups.reshape(-1))[1] + EPSILON)
    return values / (group_moments(groups, scale_rewards == "group_population")[1] + EPSILON)


def _normalised_each(rewards_per_func: Tensor, weights: Tensor, num_generations: int) -> Tensor:
    """Each reward normalised in its group, their weighted sum ``[B]`` whitened over the batch."""
    per_func = rewards_per_func.T.reshape(len(weights), -1, num_generations)
    mean, std = group_moments(per_func)
    normalised = ((per_func - mean) / (std + EPSILON)).reshape(len(weights), -1).T
    some = (~rewards_per_func.isnan()).any(dim=1)
    total = torch.where(some, (normalised * weights).nansum(dim=1), torch.nan)
    mean, std = group_moments(total)
    return (total - mean) / (std + EPSILON)
