"""How rewards enter the sum: tables by hand, laws of win rates, and one sentence for every mistake."""

from __future__ import annotations

import math

import pytest
import torch

from unigrpo.algorithm.advantages import group_advantages
from unigrpo.algorithm.combining import Combination, RewardTerm, WeightSchedule, read_terms, win_rates


NAN = math.nan


def entered(scores, *terms, group=2, names="abc"):
    """Columns of ``scores`` as they enter the sum under the names a, b, ..."""
    combination = Combination(list(names[: len(scores)]), read_terms(terms))
    return combination(torch.tensor(scores, dtype=torch.float32).T, group).T.tolist()


@pytest.mark.smoke
def test_a_gate_decides_by_the_other_rewards_raw_score():
    gate = [1.0, 0.0, -2.0, NAN, 0.5, 1.0]
    own = [3.0, 3.0, -3.0, 3.0, NAN, -3.0]
    found, same = entered([own, gate], {"gate": "b"}, {"clip": [-1.0, 0.25]})
    assert found == pytest.approx([3.0, 0.0, 0.0, NAN, NAN, -3.0], nan_ok=True)
    assert same == pytest.approx([0.25, 0.0, -1.0, NAN, 0.25, 0.25], nan_ok=True)


def test_bounds_and_the_order_gate_clip_scale():
    assert entered([[-5.0, 0.5, 5.0, NAN]], {"clip": [None, 1]})[0] == pytest.approx([-5, 0.5, 1, NAN], nan_ok=True)
    assert entered([[-5.0, 0.5, 5.0, 7.0]], {"clip": [0.0, None]})[0] == [0.0, 0.5, 5.0, 7.0]
    # A gated score is 0 and then as little as the bounds let it be.
    assert entered([[4.0, 4.0], [1.0, 0.0]], {"gate": "b", "clip": [1.0, 3.0]}, {})[0] == [3.0, 1.0]
    assert entered([[4.0, 4.0], [1.0, 0.0]], {"gate": "b", "win_rate": True}, {})[0] == [1.0, 0.0]


def test_standardised_scores_by_the_formula():
    """Over all scores of the window, whatever their group, with Bessel's correction."""
    scores = [1.0, 2.0, NAN, 4.0, 9.0, NAN]
    mean, std = 16 / 4, math.sqrt((9 + 4 + 0 + 25) / 3)
    expected = [(score - mean) / (std + 1e-4) for score in scores]
    assert entered([scores], {"standardise": True})[0] == pytest.approx(expected, nan_ok=True)
    assert entered([[3.0, 3.0, NAN, 3.0]], {"standardise": True})[0] == pytest.approx([0, 0, NAN, 0], nan_ok=True)
    assert entered([[3.0, NAN]], {"standardise": True})[0] == pytest.approx([0, NAN], nan_ok=True)


def test_standardised_rewards_of_any_scale_weigh_what_their_weights_say():
    draw = torch.randn(40, generator=torch.Generator().manual_seed(0))
    scores = torch.stack([draw, draw * 1e6 + 7e6], dim=1)
    found = Combination(["a", "b"], read_terms([{"standardise": True}] * 2))(scores, 8)
    assert torch.allclose(found[:, 0], found[:, 1], atol=1e-3)
    assert float(found[:, 1].std()) == pytest.approx(1.0, abs=1e-3)


def test_win_rates_by_hand():
    groups = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 1.0], [2.0, NAN, 2.0], [NAN, NAN, -1.0], [NAN, NAN, NAN]])
    expected = [0, 0.5, 1, 0.75, 0.75, 0, 0.5, NAN, 0.5, NAN, NAN, 0.5, NAN, NAN, NAN]
    assert win_rates(groups).reshape(-1).tolist() == pytest.approx(expected, nan_ok=True)


def test_win_rates_know_ranks_alone_and_their_mean_is_a_half():
    scores = torch.randint(-3, 4, (50, 6), generator=torch.Generator().manual_seed(1)).float()
    rates = win_rates(scores)
    assert torch.equal(rates, win_rates(scores**3 * 100 - 5)) and torch.allclose(rates, 1 - win_rates(-scores))
    assert torch.allclose(rates.mean(dim=1), torch.tensor(0.5))


def test_a_group_of_equal_scores_stays_equal():
    scores = torch.tensor([[0.1] * 4 + [0.3, 0.7, 0.2, 0.2], [1.0] * 8]).T
    for term in ({"standardise": True}, {"win_rate": True}, {"gate": "b"}, {"clip": [0.25, None]}):
        values = Combination(["a", "b"], read_terms([term, {}]))(scores, 4)
        assert group_advantages(values, torch.ones(2), 4).equal.tolist() == [True] * 4 + [False] * 4, term


@pytest.mark.parametrize(
    ("given", "factors"),
    [
        ({"start": 0.0, "end": 1.0, "steps": [100, 500]}, {0: 0, 100: 0, 101: 1 / 400, 300: 0.5, 500: 1, 900: 1}),
        ({"end": 0.0, "steps": [0, 10]}, {0: 1, 5: 0.5, 10: 0, 11: 0}),
        ({"start": 0.5, "end": 2.0, "steps": [7, 7]}, {0: 0.5, 6: 0.5, 7: 2, 8: 2}),
    ],
)
def test_a_schedule_goes_in_a_line_or_jumps(given, factors):
    assert {step: WeightSchedule(**given).factor(step) for step in factors} == pytest.approx(factors)
    both = Combination(["a", "b"], read_terms([{"schedule": given}, {}]))
    assert {step: both.factors(step).tolist() for step in factors} == {
        step: pytest.approx([factor, 1.0]) for step, factor in factors.items()
    }
    assert read_terms([{"schedule": given}])[0].largest_factor == max(abs(own) for own in factors.values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"clipp": [0, 1]}, r"reward_terms\[0\].clipp is no key of a reward: did you mean 'clip'"),
        ({"clip": [1, 0]}, r"reward_terms\[0\].clip=\[1, 0\] must be \[low, high\] with low < high"),
        ({"clip": [1, 1]}, "with low < high"),
        ({"clip": [None, None]}, "with low < high"),
        ({"clip": [0]}, "with low < high"),
        ({"clip": [0, NAN]}, "each of the list must be finite"),
        ({"clip": 5}, "clip=5 must be a list"),
        ({"clip": ["a", 1]}, "each of the list must be a number"),
        ({"standardise": "yes"}, "standardise='yes' must be true or false"),
        ({"standardise": True, "win_rate": True}, "leave one of them out"),
        ({"gate": 3}, "gate=3 must be text"),
        ({"gate": "a"}, "gate='a' of the reward 'a' is no other reward of the run"),
        ({"gate": "think_fromat"}, "did you mean 'think_format'"),
        ({"schedule": {"start": 0}}, r"reward_terms\[0\].schedule needs steps: \[first, last\]"),
        ({"schedule": {"steps": [5, 1]}}, r"schedule.steps=\[5, 1\] must be \[first, last\] with 0 <= first <= last"),
        ({"schedule": {"steps": [1]}}, "with 0 <= first <= last"),
        ({"schedule": {"stat": 1, "steps": [0, 1]}}, "schedule.stat is no key of a reward: did you mean 'start'"),
        ({"schedule": {"start": "x", "steps": [0, 1]}}, "schedule.start='x' must be a number"),
        ({"schedule": 0.5}, "schedule=0.5 must be a mapping"),
        (3, r"reward_terms\[0\]=3 must be a mapping of gate, clip"),
    ],
)
def test_a_mistake_is_one_sentence(given, said):
    with pytest.raises(ValueError, match=said) as error:
        Combination(["a", "think_format"], read_terms([given, {}]))
    assert "\n" not in str(error.value)


def test_as_many_terms_as_rewards():
    with pytest.raises(ValueError, match="reward_terms has 1 entries for 2 rewards"):
        Combination(["a", "b"], [RewardTerm()])
