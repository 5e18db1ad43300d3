"""Group-relative advantages: TRL's numbers, both aggregations, rows without a reward, groups that say nothing."""

from __future__ import annotations

import math

import pytest
import torch

from unigrpo.algorithm.advantages import EPSILON, group_advantages

from ..support.parts import estimator_of
from ..support.tiny import golden
from ..support.tolerances import assert_rounding


pytestmark = pytest.mark.golden


NAN = math.nan


def advantages(rows, weights=None, generations=2, estimator="group_mean", temperature=1.0, **options):
    options["estimator"] = estimator_of(estimator, advantage_temperature=temperature)
    scores = torch.tensor(rows)
    weights = torch.ones(scores.shape[1]) if weights is None else torch.tensor(weights)
    return group_advantages(scores, weights, generations, **options)


@pytest.mark.smoke
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_golden_advantages(scale):
    arrays, about = golden("g7_rl")
    marker = about["adv"]["nan_marker"]
    scores = arrays["adv.rewards_per_func"]
    scores = torch.where(scores == marker, NAN, scores)
    weights = torch.tensor(about["adv"]["reward_weights"], dtype=torch.float32)
    result = group_advantages(scores, weights, about["adv"]["num_generations"], scale)
    assert_rounding(result.values, arrays[f"adv.{scale}"])
    expected = torch.where(arrays["adv.rewards"] == marker, NAN, arrays["adv.rewards"])
    torch.testing.assert_close(result.rewards, expected, equal_nan=True)
    assert bool(result.rewards.isnan().any()), "the golden holds a row without a reward"


def test_group_std_is_bessel_corrected():
    result = advantages([[1.0], [3.0], [10.0], [10.0]])
    std = math.sqrt(2.0)
    assert result.group_std.tolist() == pytest.approx([std, std, 0.0, 0.0])
    assert result.values.tolist() == pytest.approx([-1 / (std + EPSILON), 1 / (std + EPSILON), 0.0, 0.0])


def test_batch_and_none_keep_the_group_mean():
    rows = [[1.0], [3.0], [10.0], [20.0]]
    assert advantages(rows, scale_rewards="none").values.tolist() == pytest.approx([-1.0, 1.0, -5.0, 5.0])
    std = torch.tensor(rows).std().item() + EPSILON
    batch = advantages(rows, scale_rewards="batch").values
    assert batch.tolist() == pytest.approx([-1 / std, 1 / std, -5 / std, 5 / std])


def test_weights_multiply_rewards():
    result = advantages([[1.0, 4.0], [2.0, 0.0]], weights=[2.0, 0.5], scale_rewards="none")
    assert result.rewards.tolist() == [4.0, 4.0]
    assert result.equal.tolist() == [True, True]
    assert result.values.tolist() == [0.0, 0.0]


def test_normalize_then_sum_by_hand():
    rows = [[0.0, 1.0], [1.0, 1.0], [2.0, 0.0], [2.0, 4.0]]
    result = advantages(rows, weights=[1.0, 0.5], aggregation="normalize_then_sum")
    first = 0.5 / (math.sqrt(0.5) + EPSILON)
    second = 0.5 * 2.0 / (math.sqrt(8.0) + EPSILON)
    total = [-first, first, -second, second]
    std = math.sqrt(sum(value**2 for value in total) / 3) + EPSILON
    assert result.values.tolist() == pytest.approx([value / std for value in total], rel=1e-5)
    summed = advantages(rows, weights=[1.0, 0.5])
    assert result.values.tolist() != pytest.approx(summed.values.tolist(), rel=1e-2)


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_row_without_reward_is_left_out_of_the_statistics(aggregation):
    with_none = advantages([[1.0], [NAN], [3.0], [0.0], [2.0], [4.0]], generations=3, aggregation=aggregation)
    assert with_none.values[1].item() == 0.0
    assert math.isnan(with_none.rewards[1].item())
    assert bool(with_none.values.isfinite().all())
    assert with_none.values[0].item() == pytest.approx(-with_none.values[2].item())
    if aggregation == "sum_then_normalize":
        pair = 1 / (math.sqrt(2.0) + EPSILON)
        assert with_none.values[:3].tolist() == pytest.approx([-pair, 0.0, pair])


def test_partly_scored_row_uses_the_rewards_that_applied():
    result = advantages([[1.0, NAN], [NAN, 5.0]], scale_rewards="none")
    assert result.rewards.tolist() == [1.0, 5.0]
    assert result.values.tolist() == [-2.0, 2.0]


def test_equal_groups_are_flagged():
    rows = [[1.0], [1.0], [0.0], [1.0], [NAN], [2.0], [NAN], [NAN]]
    result = advantages(rows)
    assert result.equal.tolist() == [True, True, False, False, True, True, True, True]
    assert result.values[[0, 1, 4, 5, 6, 7]].tolist() == [0.0] * 6
    assert result.group_std[4:].tolist() == [0.0] * 4


def test_common_offset_and_group_order_change_nothing():
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(8, 1, generator=generator)
    base = group_advantages(rows, torch.ones(1), 4).values
    shifted = group_advantages(rows + 7.0, torch.ones(1), 4).values
    assert_rounding(base, shifted, relative=1e-4)  # Rewards of 7 to 8 keep 2**-21 of a spread below 1.
    swapped = group_advantages(torch.cat([rows[4:], rows[:4]]), torch.ones(1), 4).values
    torch.testing.assert_close(torch.cat([base[4:], base[:4]]), swapped)


@pytest.mark.parametrize("size", [7, 8, 12])
def test_equal_rewards_that_fp32_cannot_average_exactly_give_advantage_zero(size):
    result = group_advantages(torch.full((size, 1), 0.1), torch.ones(1), size)
    assert bool(result.equal.all())
    assert result.values.tolist() == [0.0] * size
