"""Group-relative advantages. ``ADVANTAGE_ESTIMATORS`` is the one place to add an estimator.

An estimator is called with rewards ``[N, G]``, one group a row, NaN where no reward applies, and returns them minus their
baseline, NaN staying NaN. One of your own is such a function, or a frozen dataclass whose fields are its keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..parts import check_keys, key


EPSILON = 1e-4
"""Added to every standard deviation, as in TRL."""

WIDE = 2.0**50
"""Beyond this, rewards are compared in fp64: squares of fp32 numbers overflow from 2^64 on."""


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


def _roomy(values: Tensor, factor: float = 1.0) -> Tensor:
    """``values`` in fp32 at least, in fp64 where ``factor`` times the largest of them passes ``WIDE``."""
    largest = float(values.abs().nan_to_num(0.0).max()) if values.numel() else 0.0
    wide = max(largest, 1.0) * factor > WIDE
    return values.to(torch.float64 if wide else torch.promote_types(values.dtype, torch.float32))


def _narrowed(values: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """``values`` rounded to ``dtype``; raises ``ValueError`` for numbers that it does not reach."""
    narrow = values.to(dtype)
    if bool(narrow.isinf().any()):
        largest = float(values.abs().nan_to_num(0.0).max())
        raise ValueError(
            f"{what} of size {largest:.3g} pass the largest number of {dtype}: return smaller rewards, or lower "
            "reward_weights"
        )
    return narrow


def group_moments(values: Tensor, population: bool = False) -> tuple[Tensor, Tensor]:
    """NaN-aware mean and std over the last dimension, kept; Bessel-corrected unless ``population``; std 0 of one value.

    Of no value the mean is NaN and the std 0. Both are fp32, or fp64 of values beyond ``WIDE``.
    """
    values = _roomy(values)
    count = (~values.isnan()).sum(dim=-1, keepdim=True)
    mean = values.nanmean(dim=-1, keepdim=True)
    divisor = count if population else count - 1
    variance = ((values - mean) ** 2).nansum(dim=-1, keepdim=True) / divisor.clamp(min=1)
    return mean, torch.where(count > 1, variance, 0.0).sqrt()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMean:
    """r minus the mean of its group.

    Attributes:
        scaled: whether ``scale_rewards`` divides the result by a std; else it has a scale of its own.
        across_groups: whether groups are compared with each other: then a group of equal rewards still says something.
    """

    scaled: ClassVar[bool] = True
    across_groups: ClassVar[bool] = False

    def __call__(self, groups: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
        """Rewards minus their baseline."""
        return groups - groups.nanmean(dim=1, keepdim=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveOneOut:
    """r minus the mean of the group's other answers: RLOO (arXiv 2402.14740)."""

    scaled: ClassVar[bool] = True
    across_groups: ClassVar[bool] = False

    def __call__(self, groups: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
        """Rewards minus their baseline."""
        count = (~groups.isnan()).sum(dim=1, keepdim=True)
        centred = groups - groups.nanmean(dim=1, keepdim=True)
        # r_i - mean of the others = (r_i - mean) n / (n - 1); a single answer has no baseline.
        return torch.where(count > 1, centred * count / (count - 1).clamp(min=1), centred)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMean:
    """r minus the mean of all groups."""

    scaled: ClassVar[bool] = True
    across_groups: ClassVar[bool] = True

    def __call__(self, groups: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
        """Rewards minus their baseline."""
        return groups - groups.nanmean()


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxWeights:
    """wd1's weights G (softmax(A / psi) - softmax(-A / psi)) over the group (arXiv 2507.08838), which no std divides."""

    scaled: ClassVar[bool] = False
    across_groups: ClassVar[bool] = False

    advantage_temperature: float = key(1.0, "psi of the softmax weights", above=0)

    def __post_init__(self) -> None:
        check_keys(self)

    def __call__(self, groups: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
        """The weights."""
        scored = ~groups.isnan()
        # Divided by a small psi, rewards of any size may pass what their type holds.
        centred = _roomy(groups, 1 / min(self.advantage_temperature, 1.0))
        centred = centred - centred.nanmean(dim=1, keepdim=True)
        scores = torch.where(scored, centred, -torch.inf) / self.advantage_temperature
        against = torch.where(scored, -centred, -torch.inf) / self.advantage_temperature
        count = scored.sum(dim=1, keepdim=True)
        return torch.where(scored, count * (scores.softmax(dim=1) - against.softmax(dim=1)), torch.nan)


ADVANTAGE_ESTIMATORS: dict[str, Callable] = {
    "group_mean": GroupMean,
    "leave_one_out": LeaveOneOut,
    "batch_mean": BatchMean,
    "softmax": SoftmaxWeights,
}


def compares_groups(estimator: Callable) -> bool:
    """Whether ``estimator`` compares groups with each other; a function that does not say is taken not to."""
    return getattr(estimator, "across_groups", False)


def group_advantages(
    rewards_per_func: Float[Tensor, "B F"],
    weights: Float[Tensor, " F"],
    num_generations: int,
    scale_rewards: str = "group",
    aggregation: str = "sum_then_normalize",
    *,
    estimator: Callable[[Tensor], Tensor] = GroupMean(),
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
        estimator: takes the baseline away, one of ``ADVANTAGE_ESTIMATORS``.
        clip: advantages are cut to +-this, None = not at all.

    A group of one has advantage 0, of ``BatchMean`` aside. Half-precision rewards are compared in fp32, huge ones in fp64.

    Raises:
        ValueError: an infinite reward or weight, rows that are no whole groups, or a weighted reward, advantage or std beyond the largest number of the result's type.
    """
    _check_arguments(rewards_per_func, weights, num_generations)
    dtype = torch.promote_types(rewards_per_func.dtype, torch.float32)
    largest_weight = float(weights.abs().max()) if len(weights) else 1.0
    rewards_per_func = _roomy(rewards_per_func, max(largest_weight, 1.0))
    weights = weights.to(rewards_per_func)
    applies = ~rewards_per_func.isnan()
    weighted = rewards_per_func * weights
    rewards = torch.where(applies.any(dim=1), weighted.nansum(dim=1), torch.nan)
    groups = rewards.view(-1, num_generations)
    spread = groups.nan_to_num(-torch.inf).amax(dim=1) - groups.nan_to_num(torch.inf).amin(dim=1)
    equal = (spread <= 0).repeat_interleave(num_generations)
    if aggregation == "normalize_then_sum":
        values = _normalised_each(rewards_per_func, weights, num_generations)
    else:
        values = _scaled(estimator(groups), groups, scale_rewards, estimator)
    values = values.reshape(-1).nan_to_num(0.0)
    if aggregation == "sum_then_normalize" and not compares_groups(estimator):
        # The mean of equal fp32 numbers can differ from them in the last digit; such a group has no preference.
        values = values.masked_fill(equal, 0.0)
    if clip is not None:
        values = values.clamp(-clip, clip)
    std = group_moments(groups)[1].expand_as(groups).reshape(-1)
    return Advantages(
        values=_narrowed(values, dtype, "advantages"),
        rewards=_narrowed(rewards, dtype, "weighted rewards"),
        group_std=_narrowed(std, dtype, "group_std"),
        equal=equal,
    )


def _check_arguments(rewards_per_func: Tensor, weights: Tensor, num_generations: int) -> None:
    """Raises ``ValueError`` for arguments of ``group_advantages`` that say nothing about groups."""
    for name, values in (("rewards_per_func", rewards_per_func), ("weights", weights)):
        if bool(values.isinf().any()):
            raise ValueError(f"{name} holds an infinite number; NaN says that a reward does not apply")
    if num_generations < 1 or len(rewards_per_func) % num_generations:
        raise ValueError(f"num_generations={num_generations} does not divide {len(rewards_per_func)} rows into groups")


def _scaled(values: Tensor, groups: Tensor, scale_rewards: str, estimator: Callable) -> Tensor:
    """``values [N, G]`` over the std that ``scale_rewards`` names, unless they have a scale of their own."""
    if not getattr(estimator, "scaled", True) or scale_rewards == "none":
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
