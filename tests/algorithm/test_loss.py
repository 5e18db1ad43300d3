"""The policy loss: float64 references, hand tables, and the laws it must obey."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import TypeCheckError

from unigrpo.algorithm.loss import kl_estimate

from ..support.parts import policy_loss
from ..support.records import terms_of
from ..support.tiny import golden


pytestmark = pytest.mark.golden


GOLDEN_CASES = [("token", "masked"), ("token", "completion"), ("sequence", "masked")]


def golden_terms(level: str, normalization: str):
    """Terms of the golden batch in float64, with the logits they are differentiable in."""
    arrays, about = golden("g7_rl")
    settings = about[f"unigrpo.{level}.masked"]
    logits = arrays["x.logits"].double().requires_grad_()
    logps = logits.log_softmax(-1).gather(-1, arrays["x.ids"][..., None]).squeeze(-1)
    target = arrays["x.p_mask"].bool()
    loss = policy_loss(
        epsilon=settings["eps"],
        epsilon_high=settings["eps"],
        beta=settings["beta"],
        importance_sampling_level=level,
        length_normalization=normalization,
    )
    terms = terms_of(
        loss,
        logps,
        arrays["x.old_logp"].double(),
        arrays["x.ref_logp"].double(),
        arrays["x.adv"].double(),
        target,
        target.double(),
        torch.full((len(target),), float(about["ids"]["C"]), dtype=torch.float64),
    )
    return terms, logits, target, logps.detach()


@pytest.mark.smoke
@pytest.mark.parametrize(("level", "normalization"), GOLDEN_CASES)
def test_golden_loss_and_gradient(level, normalization):
    arrays, about = golden("g7_rl")
    terms, logits, _, _ = golden_terms(level, normalization)
    loss = terms.losses.mean()
    loss.backward()
    name = f"unigrpo.{level}.{normalization}"
    assert abs(loss.item() - about[name]["loss"]) < 1e-6
    start = about["ids"]["P"]
    assert (logits.grad[:, start:] - arrays[f"{name}.grad_logits"]).abs().max() < 1e-6
    assert logits.grad[:, :start].abs().max() == 0


@pytest.mark.parametrize(("level", "normalization"), GOLDEN_CASES)
def test_golden_kl(level, normalization):
    _, about = golden("g7_rl")
    terms, _, target, _ = golden_terms(level, normalization)
    kl = terms.kl
    if normalization == "completion":
        kl = kl * target.sum(dim=1) / about["ids"]["C"]
    assert abs(kl.mean().item() - about[f"unigrpo.{level}.{normalization}"]["kl"]) < 1e-6


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_golden_ratios_and_clip_fraction(level):
    arrays, about = golden("g7_rl")
    terms, _, target, logps = golden_terms(level, "masked")
    case = about[f"unigrpo.{level}.masked"]
    clipped = terms.clipped_low | terms.clipped_high
    assert clipped.double().mean().item() == pytest.approx(case["clip_frac"], abs=1e-9)
    own = logps - arrays["x.old_logp"]
    if level == "sequence":
        expected = ((own * target).sum(1) / target.sum(1)).exp()
        torch.testing.assert_close(terms.ratio, expected)
        torch.testing.assert_close(terms.ratio, arrays["unigrpo.sequence.masked.ratio_row"])
    else:
        ratio, eps = own.exp(), case["eps"]
        torch.testing.assert_close(terms.ratio, ratio[target])
        surrogate = torch.minimum(
            ratio * arrays["x.adv"][:, None], ratio.clamp(1 - eps, 1 + eps) * arrays["x.adv"][:, None]
        )
        acts = surrogate != ratio * arrays["x.adv"][:, None]
        assert torch.equal(clipped, acts[target])


def evaluate(ratios, advantage, *, epsilon=0.2, epsilon_high=0.2, ref=None, beta=0.0, **options):
    """Terms of one row whose tokens have the given ratios to an old log-probability of -2."""
    old = torch.full((1, len(ratios)), -2.0, dtype=torch.float64)
    logps = (old + torch.tensor([ratios], dtype=torch.float64).log()).requires_grad_()
    target = torch.ones_like(old, dtype=torch.bool)
    loss = policy_loss(epsilon=epsilon, epsilon_high=epsilon_high, beta=beta, **options)
    ref = None if ref is None else torch.tensor([ref], dtype=torch.float64)
    terms = terms_of(
        loss,
        logps,
        old,
        ref,
        torch.tensor([advantage], dtype=torch.float64),
        target,
        target.double(),
        torch.tensor([float(len(ratios))], dtype=torch.float64),
    )
    return terms, logps


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="kl_estimator='exact' is no estimate"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "exact")


def test_clipping_table():
    """Four ratios and both signs: clipping acts only where it removes an incentive."""
    ratios = [0.5, 0.9, 1.1, 1.5]
    positive, logps = evaluate(ratios, 2.0)
    assert positive.losses.item() == pytest.approx(-2.0 * (0.5 + 0.9 + 1.1 + 1.2) / 4)
    assert positive.clipped_high.tolist() == [False, False, False, True]
    assert not bool(positive.clipped_low.any())
    positive.losses.sum().backward()
    assert logps.grad[0].tolist() == pytest.approx([-0.25, -0.45, -0.55, 0.0])

    negative, logps = evaluate(ratios, -2.0)
    assert negative.losses.item() == pytest.approx(2.0 * (0.8 + 0.9 + 1.1 + 1.5) / 4)
    assert negative.clipped_low.tolist() == [True, False, False, False]
    assert not bool(negative.clipped_high.any())
    negative.losses.sum().backward()
    assert logps.grad[0].tolist() == pytest.approx([0.0, 0.45, 0.55, 0.75])


def test_log_ratios_to_the_reference_are_cut_too():
    """One token at log p = -100 where the reference says -0.1: k3 of x cut at 10 is e^10 - 11 and has no gradient."""
    free, _ = evaluate([1.0], 0.0, ref=[40.0], beta=1.0)
    assert free.losses.item() == pytest.approx(math.exp(42) - 43)
    cut, logps = evaluate([1.0], 0.0, ref=[40.0], beta=1.0, log_ratio_clip=10.0)
    assert cut.losses.item() == pytest.approx(math.exp(10) - 11)
    cut.losses.sum().backward()
    assert logps.grad.item() == 0.0


def test_epsilon_high_moves_only_the_upper_bound():
    wide, _ = evaluate([0.5, 1.5], 1.0, epsilon_high=0.4)
    assert wide.losses.item() == pytest.approx(-(0.5 + 1.4) / 2)
    assert wide.clipped_high.tolist() == [False, True]
    loose, _ = evaluate([0.5, 1.5], 1.0, epsilon_high=0.6)
    assert loose.losses.item() == pytest.approx(-(0.5 + 1.5) / 2)
    assert not bool(loose.clipped_high.any())
    low, _ = evaluate([0.5, 1.5], -1.0, epsilon_high=0.6)
    assert low.losses.item() == pytest.approx((0.8 + 1.5) / 2)


def test_sequence_ratio_is_the_exponential_of_the_mean():
    terms, _ = evaluate([1.0, math.e**0.2], 3.0, importance_sampling_level="sequence", epsilon_high=0.5)
    assert terms.ratio.tolist() == pytest.approx([math.exp(0.1)])
    assert terms.losses.item() == pytest.approx(-3.0 * math.exp(0.1))


@pytest.mark.parametrize(
    ("estimator", "formula"),
    [("k1", lambda x: -x), ("k2", lambda x: x * x / 2), ("k3", lambda x: math.exp(x) - x - 1)],
)
def test_kl_estimators(estimator, formula):
    points = [-1.5, -0.1, 0.0, 0.3, 2.0]
    logps = torch.full((5,), -3.0, dtype=torch.float64)
    values = kl_estimate(logps + torch.tensor(points, dtype=torch.float64), logps, estimator)
    assert values.tolist() == pytest.approx([formula(x) for x in points], abs=1e-12)
    terms, _ = evaluate([1.0] * 5, 0.0, ref=[-2.0 + x for x in points], beta=0.5, kl_estimator=estimator)
    mean = sum(formula(x) for x in points) / 5
    assert terms.kl.item() == pytest.approx(mean)
    assert terms.losses.item() == pytest.approx(0.5 * mean)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("normalization", ["masked", "completion"])
def test_row_without_target_is_zero_and_has_a_finite_gradient(level, normalization):
    logps = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]], requires_grad=True)
    target = torch.tensor([[False, False], [True, True]])
    loss = policy_loss(
        epsilon=0.2, epsilon_high=0.2, beta=0.1, importance_sampling_level=level, length_normalization=normalization
    )
    old, ref = torch.full((2, 2), -60.0), torch.full((2, 2), 80.0)
    old[1], ref[1] = logps.detach()[1], logps.detach()[1] - 0.5
    terms = terms_of(loss, logps, old, ref, torch.tensor([5.0, 1.0]), target, target.float(), torch.tensor([0.0, 2.0]))
    terms.losses.sum().backward()
    assert terms.losses[0].item() == 0.0
    assert terms.kl[0].item() == 0.0
    assert logps.grad[0].tolist() == [0.0, 0.0]
    assert bool(logps.grad[1].isfinite().all())
    assert logps.grad[1].abs().min() > 0
    assert terms.ratio.tolist() == [1.0] * (2 if level == "token" else 1)


def test_weight_scales_a_token():
    logps = torch.zeros(1, 2)
    weight, target = torch.tensor([[2.0, 0.5]]), torch.ones(1, 2, dtype=torch.bool)
    loss = policy_loss(epsilon=0.2, epsilon_high=0.2)
    terms = terms_of(loss, logps, logps, None, torch.tensor([1.0]), target, weight, torch.tensor([2.0]))
    assert terms.losses.item() == pytest.approx(-(2.0 + 0.5) / 2)


def test_shapes_are_checked():
    target = torch.ones(2, 3, dtype=torch.bool)
    values = torch.zeros(2, 3)
    with pytest.raises(TypeCheckError):
        terms_of(
            policy_loss(epsilon=0.2, epsilon_high=0.2),
            values,
            values,
            None,
            torch.zeros(3),
            target,
            target.float(),
            torch.ones(2),
        )


def test_summed_ratio_is_the_exponential_of_the_sum():
    """Clipping acts on the whole row's ratio; the gradient reaches each token with the ratio itself."""
    terms, logps = evaluate([math.e**0.1, math.e**-0.3, math.e**0.15], 3.0, importance_sampling_level="sequence_sum")
    assert terms.ratio.tolist() == pytest.approx([math.exp(-0.05)])
    assert terms.losses.item() == pytest.approx(-3.0 * math.exp(-0.05))
    terms.losses.sum().backward()
    assert logps.grad[0].tolist() == pytest.approx([-3.0 * math.exp(-0.05)] * 3)
    high, logps = evaluate([1.2, 1.2], 3.0, importance_sampling_level="sequence_sum")
    assert high.ratio.tolist() == pytest.approx([1.44])
    assert high.losses.item() == pytest.approx(-3.0 * 1.2)
    assert high.clipped_high.tolist() == [True]
    high.losses.sum().backward()
    assert logps.grad[0].tolist() == [0.0, 0.0]


def test_summed_kl_estimate_is_that_of_the_sums():
    """x = -0.3 + 0.1 over the row: k3 = exp(-0.2) + 0.2 - 1."""
    terms, _ = evaluate([1.0, 1.0], 0.0, ref=[-2.3, -1.9], beta=0.5, importance_sampling_level="sequence_sum")
    expected = math.exp(-0.2) + 0.2 - 1
    assert terms.kl.item() == pytest.approx(expected)
    assert terms.losses.item() == pytest.approx(0.5 * expected)
