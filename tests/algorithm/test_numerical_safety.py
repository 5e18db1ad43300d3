"""Numerical safety of what makes a loss: advantages, surrogates, the loss itself, estimates of the KL.

Each function gives finite numbers at its edges, or what its docstring says instead; a gradient is never NaN behind a finite
loss. ``test_numerical_safety_logits.py`` and ``test_numerical_safety_rollouts.py`` have the same for what comes before.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.algorithm.advantages import EPSILON, group_advantages, group_moments
from unigrpo.algorithm.loss import LossTerms, kl_estimate
from unigrpo.algorithm.mixing import REDUCTIONS, linear, upper_bound
from unigrpo.algorithm.surrogates import SURROGATES, objective_of
from unigrpo.training.evaluation import bootstrap

from ..support.parts import estimator_of, part_of, policy_loss
from ..support.records import terms_of


bounded = settings(max_examples=60, deadline=None, derandomize=True)
NAN, INF = math.nan, math.inf
HALVES = (torch.float16, torch.bfloat16)
ESTIMATORS = ("group_mean", "leave_one_out", "batch_mean", "softmax")
SCALES = ("group", "group_population", "batch", "none")
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")


# ---- advantages ----


@st.composite
def groups(draw, largest: int = 6):
    """Rewards ``[N, G]`` of one size from 1e-30 to 1e30 a group, some of them NaN."""
    rows, size = draw(st.integers(1, 3)), draw(st.integers(1, largest))
    unit = [draw(st.sampled_from([0.0, 1e-30, 1.0, 1e8, 1e20, 1e30])) for _ in range(rows)]
    entry = st.one_of(st.floats(-1, 1, width=32), st.just(NAN))
    return torch.tensor([[u * draw(entry) for _ in range(size)] for u in unit])


@pytest.mark.smoke
@bounded
@given(groups(), st.sampled_from(ESTIMATORS), st.sampled_from(SCALES), st.sampled_from(AGGREGATIONS))
def test_advantages_are_finite_and_those_of_a_group_sum_to_zero(rewards, estimator, scale, aggregation):
    size = rewards.shape[1]
    result = group_advantages(
        rewards.view(-1, 1), torch.ones(1), size, scale, aggregation, estimator=estimator_of(estimator)
    )
    values, std = result.values.view_as(rewards), result.group_std.view_as(rewards)
    assert bool(values.isfinite().all()) and bool(std.isfinite().all())
    assert values[rewards.isnan()].eq(0).all()
    assert torch.equal(result.rewards.view_as(rewards).isnan(), rewards.isnan())
    if aggregation == "normalize_then_sum" or estimator == "batch_mean":
        return
    if estimator == "softmax":
        assert values.sum(dim=1).abs().max() < 1e-5 * size
    elif scale in ("group", "none"):
        divisor = std[:, 0] + EPSILON if scale == "group" else torch.ones(len(rewards))
        largest = rewards.nan_to_num(0.0).abs().amax(dim=1)
        # A tiny reward is centred exactly, a number next to it is not: rounding is relative to the largest.
        assert (values.sum(dim=1).abs() * divisor <= 1e-6 * size * largest + 1e-37).all()
    if size == 1:
        assert values.eq(0).all() and std.eq(0).all() and bool(result.equal.all())


@bounded
@given(
    st.lists(st.integers(-3, 3), min_size=4, max_size=4), st.sampled_from(ESTIMATORS[:3]), st.sampled_from(SCALES[:3])
)
def test_the_size_and_the_origin_of_huge_rewards_change_nothing(rewards, estimator, scale):
    # A group of equal rewards has no scale of its own to hold against the mean of all groups.
    scale = "batch" if estimator == "batch_mean" else scale

    def values(unit: float, origin: float = 0.0):
        scores = torch.tensor([[unit * (r + origin)] for r in rewards])
        return group_advantages(scores, torch.ones(1), 2, scale, estimator=estimator_of(estimator)).values

    ordinary = values(1e6)
    torch.testing.assert_close(values(1e30), ordinary, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(values(-1e30), -ordinary, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(values(1e30, 5.0), ordinary, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("size", [1e15, 1e20, 1e30])
def test_a_huge_pair_has_its_ordinary_advantage_and_leaves_other_groups_alone(size, aggregation):
    rewards = torch.tensor([[size], [-size], [1.0], [4.0]])
    result = group_advantages(rewards, torch.ones(1), 2, aggregation=aggregation)
    expected = [1, -1, -1, 1]
    length = math.sqrt(3) / 2 if aggregation == "normalize_then_sum" else math.sqrt(0.5)
    assert result.values.tolist() == pytest.approx([length * sign for sign in expected], rel=3e-4)
    assert result.group_std.tolist() == pytest.approx([size * math.sqrt(2)] * 2 + [3 * math.sqrt(0.5)] * 2, rel=1e-6)
    alone = group_advantages(rewards[2:], torch.ones(1), 2)
    if aggregation == "sum_then_normalize":
        torch.testing.assert_close(result.values[2:], alone.values, rtol=1e-6, atol=0)


def test_a_softmax_sharper_than_fp32_names_the_best_and_the_worst():
    rewards = torch.tensor([[1.0], [2.0], [2.5], [3.0]])
    result = group_advantages(
        rewards, torch.ones(1), 4, estimator=estimator_of("softmax", advantage_temperature=1e-60)
    )
    assert result.values.tolist() == [-4.0, 0.0, 0.0, 4.0]


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        ([INF, 0.0], {}, "rewards_per_func holds an infinite number"),
        ([1.0, 0.0], {"weights": [-INF]}, "weights holds an infinite number"),
        ([3e38, -3e38], {}, "group_std of size 4.24e[+]38 pass the largest number of torch.float32"),
        ([3e38, 2.9e38], {"weights": [10.0]}, "weighted rewards of size 3e[+]39 .* lower reward_weights"),
        ([2.2e38, -2.2e38], {"scale": "none", "estimator": estimator_of("leave_one_out")}, "advantages of size 4.4e[+]38"),
        ([1.0, 0.0], {"size": 0}, "num_generations=0 does not divide 2 rows"),
        ([1.0, 0.0], {"size": 3}, "num_generations=3 does not divide 2 rows"),
    ],
)  # fmt: skip
def test_rewards_that_no_number_can_hold_are_refused(rewards, options, message):
    options = {"size": 2, "weights": [1.0], "scale": "group", **options}
    size, weights, scale = options.pop("size"), torch.tensor(options.pop("weights")), options.pop("scale")
    with pytest.raises(ValueError, match=message):
        group_advantages(torch.tensor(rewards)[:, None], weights, size, scale, **options)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_rewards_are_compared_in_fp32(dtype):
    rewards = torch.tensor([[300.0], [1000.0], [7.0], [40000.0]]).to(dtype)
    half, full = (group_advantages(own, torch.ones(1), 4) for own in (rewards, rewards.float()))
    assert half.values.dtype == half.group_std.dtype == torch.float32
    assert torch.equal(half.values, full.values)
    assert torch.equal(group_moments(rewards.T)[1], group_moments(rewards.float().T)[1])


@bounded
@given(groups(), st.booleans())
def test_group_moments_are_those_of_float64(rewards, population):
    mean, std = group_moments(rewards, population)
    wide = rewards.double()
    count = (~wide.isnan()).sum(dim=1, keepdim=True)
    for row, own, middle, scored in zip(wide, std, mean, count, strict=True):
        known = row[~row.isnan()]
        if not scored:
            assert middle.isnan() and own == 0
            continue
        largest = float(known.abs().max())
        assert float(middle) == pytest.approx(float(known.mean()), abs=1e-6 * largest + 1e-40)
        expected = float(known.std(correction=0 if population else 1)) if scored > 1 else 0.0
        # Below 1e-22 squares underflow: the std of such rewards is 0, as if they were equal.
        assert float(own) == pytest.approx(expected, abs=1e-5 * largest + 1e-21)


def test_no_rows_and_no_rewards():
    assert group_advantages(torch.ones(0, 1), torch.ones(1), 2).values.tolist() == []
    none = group_advantages(torch.ones(4, 0), torch.ones(0), 2)
    assert none.values.tolist() == [0.0] * 4 and bool(none.rewards.isnan().all()) and bool(none.equal.all())


@pytest.mark.parametrize("outcome", [0.0, 1.0, True])
def test_the_interval_of_one_outcome_is_that_outcome(outcome):
    accuracy = bootstrap([outcome])
    assert (accuracy.mean, accuracy.low, accuracy.high, accuracy.count) == (outcome, outcome, outcome, 1)


# ---- the loss ----

EXTREMES = (-1e4, -100.0, -1.0, -0.1, 0.0)


@st.composite
def losses(draw, options: dict | None = None):
    """A loss and its arguments: b rows, S draws each, L tokens, log-probabilities down to -1e4, any mask."""
    b, s, length = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))

    def table(values, shape=(b * s, length)):
        strategy = st.sampled_from(values)
        return torch.tensor([draw(strategy) for _ in range(math.prod(shape))]).view(shape)

    kind = draw(st.sampled_from(sorted(REDUCTIONS)))
    rows = b if REDUCTIONS[kind].mixes else b * s
    loss = policy_loss(
        epsilon=0.2,
        epsilon_high=0.3,
        beta=draw(st.sampled_from([0.0, 0.1])),
        kl_estimator=draw(st.sampled_from(["k1", "k2", "k3"])),
        kl_level=draw(st.sampled_from(["ratio", "sum"])),
        importance_sampling_level=draw(st.sampled_from(["token", "sequence", "sequence_sum"])),
        length_normalization=draw(st.sampled_from(["masked", "completion"])),
        surrogate=draw(st.sampled_from(sorted(SURROGATES))),
        delta=draw(st.sampled_from([None, 3.0])),
        loss_type=draw(st.sampled_from(["grpo", "dr_grpo", "dapo", "bnpo"])),
        reduce=kind,
        bound_mixture=draw(st.sampled_from([0.0, 0.5, 1.0])),
        max_length=4,
        **(options or {}),
    )
    arguments = {
        "logps": table(EXTREMES).requires_grad_(),
        "old_logps": table(EXTREMES),
        "ref_logps": table(EXTREMES) if loss.beta > 0 else draw(st.sampled_from([None, table(EXTREMES)])),
        "advantages": table([-1e30, -2.0, 0.0, 2.0, 1e30], (rows,)),
        "target": table([True, False]),
        "weight": table([0.5, 1.0, 40.0]),
        "completion_length": table([0.0, float(length)], (rows,)),
        "tokens_per_row": 1.5,
    }
    return loss, arguments


def rows_with_gradients(terms: LossTerms, logps: torch.Tensor):
    """Loss and gradient ``[m / b, L]`` of each row; a row has no part in another's."""
    terms.losses.sum().backward()
    return zip(terms.losses.tolist(), logps.grad.view(len(terms.losses), -1, logps.shape[1]), strict=True)


@settings(bounded, max_examples=250)
@given(losses())
def test_a_finite_loss_has_a_finite_gradient_and_an_empty_row_neither(case):
    loss, arguments = case
    target = arguments["target"].view(len(arguments["advantages"]), -1)
    terms = terms_of(loss, **arguments)
    bound = loss.beta == 0 and (arguments["advantages"] >= 0).all()
    for (value, gradient), scored in zip(rows_with_gradients(terms, arguments["logps"]), target, strict=True):
        if math.isfinite(value):
            assert bool(gradient.isfinite().all()), (loss, arguments)
        else:
            assert not bound, "a positive advantage bounds every surrogate"
        if not scored.any():
            assert value == 0 and not gradient.any()
    assert bool(terms.kl[~target.any(dim=1)].eq(0).all())


@settings(bounded, max_examples=120)
@given(losses({"log_ratio_clip": 5.0}), st.floats(-5, 5, width=32))
def test_with_log_ratio_clip_every_loss_is_finite(case, advantage):
    loss, arguments = case
    arguments["advantages"] = torch.full_like(arguments["advantages"], advantage)
    for value, gradient in rows_with_gradients(terms_of(loss, **arguments), arguments["logps"]):
        assert math.isfinite(value) and bool(gradient.isfinite().all())


@settings(bounded, max_examples=120)
@given(losses(), st.sampled_from([NAN, INF, -INF]))
def test_what_is_not_scored_may_be_anything(case, garbage):
    loss, arguments = case
    results = []
    for filler in (0.0, garbage):
        own = dict(arguments)
        for key in ("logps", "old_logps", "ref_logps"):
            if own[key] is not None:
                own[key] = own[key].detach().masked_fill(~own["target"], filler)
        own["logps"].requires_grad_()
        terms = terms_of(loss, **own)
        terms.losses.sum().backward()
        results.append((terms.losses.detach(), own["logps"].grad))
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean.nan_to_num(7.0), dirty.nan_to_num(7.0))


def one_token(log_ratio: float, advantage: float, dtype=torch.float32, **options):
    """Loss and gradient of one token with this log-ratio to the old policy."""
    logps = torch.tensor([[log_ratio]], dtype=dtype, requires_grad=True)
    loss = policy_loss(epsilon=0.2, epsilon_high=0.3, **options)
    one, yes = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    terms = terms_of(loss, logps, torch.zeros(1, 1, dtype=dtype), None, torch.tensor([advantage]), yes, one, one[0])
    terms.losses.sum().backward()
    return terms.losses.item(), logps.grad.item(), terms


@pytest.mark.parametrize("log_ratio", [20.0, 89.0, 1e4])
def test_a_ratio_beyond_fp32_is_clipped_or_infinite(log_ratio):
    """Bounded: the bound's value, no gradient. Not bounded: an infinite loss, which the guard stops."""
    assert one_token(log_ratio, 2.0)[:2] == (pytest.approx(-2.6), 0.0)
    assert one_token(log_ratio, 0.0)[:2] == (0.0, 0.0)
    assert one_token(log_ratio, -2.0, delta=4.0)[:2] == (8.0, 0.0)
    assert one_token(log_ratio, 2.0, surrogate="linear_bound")[:2] == (pytest.approx(-2 - 2 * log_ratio), -2.0)
    assert one_token(log_ratio, 2.0, surrogate="cispo")[1] == pytest.approx(-2.6)
    assert bool(one_token(log_ratio, 2.0)[2].clipped_high.all())
    if log_ratio > 88:
        assert one_token(log_ratio, -2.0)[0] == INF
        assert one_token(log_ratio, -2.0, surrogate="linear_bound")[0] == INF
    assert one_token(-log_ratio, -2.0)[:2] == (pytest.approx(1.6), 0.0)
    assert one_token(-log_ratio, 2.0)[0] == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize("name", sorted(SURROGATES))
@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
def test_surrogates_of_any_precision_are_finite_for_positive_advantages(name, dtype):
    log_ratio = torch.tensor([-1e4, -1.0, 0.0, 12.0, 1e4], dtype=dtype, requires_grad=True)
    advantages = torch.tensor([1.0, 0.0, 1.0, 2.0, 1.0], dtype=dtype)
    objective = objective_of(
        part_of(SURROGATES, name, epsilon=0.2, epsilon_high=0.3)(log_ratio, log_ratio, advantages)
    )
    objective.value.sum().backward()
    assert bool(objective.value.isfinite().all()) and bool(log_ratio.grad.isfinite().all())


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_log_probabilities_are_computed_with_in_fp32(dtype):
    for surrogate in ("ppo", "linear_bound"):
        value, _, terms = one_token(12.0, -2.0, dtype, surrogate=surrogate)
        assert terms.losses.dtype == torch.float32
        assert value == pytest.approx(2 * math.exp(12))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_estimates_of_the_kl_at_extreme_differences(dtype):
    x = torch.tensor([-1e4, -100.0, 0.0, 80.0, 1e4]).to(dtype)
    values = {name: kl_estimate(x, torch.zeros_like(x), name) for name in ("k1", "k2", "k3")}
    wide = x.double()
    assert {own.dtype for own in values.values()} == {torch.float32}
    assert torch.equal(values["k1"].double(), -wide)
    torch.testing.assert_close(values["k2"].double(), wide.square() / 2)
    torch.testing.assert_close(values["k3"][:4].double(), torch.expm1(wide[:4]) - wide[:4], rtol=1e-5, atol=0)
    assert values["k3"][4] == INF
    near = kl_estimate(torch.tensor([1e-3]), torch.zeros(1), "k3")
    assert float(near) == pytest.approx(5.0017e-7, rel=1e-3)
    assert bool((values["k2"] >= 0).all()) and bool((values["k3"] >= 0).all())


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("missing", [None, 0])
def test_a_loss_type_without_its_divisor_is_refused(loss_type, missing):
    loss = policy_loss(epsilon=0.2, epsilon_high=0.3, loss_type=loss_type, max_length=missing)
    zero, tokens = torch.zeros(1, 1), None if missing is None else float(missing)
    with pytest.raises(ValueError, match=f"loss_type='{loss_type}' needs (max_length|tokens_per_row), got {missing}"):
        terms_of(loss, zero, zero, None, zero[0], zero.bool(), zero, zero[0], tokens_per_row=tokens)


@bounded
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([-1e4, -50.0, 0.0]), st.randoms(use_true_random=False))
def test_mixtures_of_draws_are_finite_and_zero_where_nothing_is_scored(b, s, logp, random):
    target = torch.tensor([[[random.random() < 0.5] * 2 for _ in range(s)] for _ in range(b)])
    logps = torch.full((b, s, 2), logp, requires_grad=True)
    weight = torch.full((b, s, 2), 0.25)
    for kind in ("per_token", "signed"):
        mixed = REDUCTIONS[kind]()(logps, target, weight, torch.full((b,), -1.0))
        mixed.sum().backward()
        assert bool(mixed.isfinite().all()) and bool(logps.grad.isfinite().all())
        assert not mixed[~target.any(dim=1)].any()
    seen = target.sum(dim=1)
    torch.testing.assert_close(linear(logps, target, weight), seen * 0.25 * logp)
    expected = torch.where(seen > 0, logp + (seen.clamp(min=1) * 0.25).log() / 2, 0.0)
    torch.testing.assert_close(upper_bound(logps, target, weight, 2.0), expected)
