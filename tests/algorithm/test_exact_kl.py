"""The exact KL: values and gradients against float64 autograd, its estimators' mean, and its place in the loss."""

from __future__ import annotations

import math

import pytest
import torch

from unigrpo.algorithm.likelihood import score_tokens, token_logprobs
from unigrpo.algorithm.loss import kl_estimate
from unigrpo.models import MMaDAPolicy
from unigrpo.models.head import ROWS_PER_CHUNK, VocabularyHead, gather_logps, normalised
from unigrpo.types import TokenSpace

from ..support.heads import SIZE, SPACES, VOCAB, problem, relative, worst
from ..support.parts import policy_loss
from ..support.records import terms_of
from ..support.tiny import tiny_model, tiny_processor


FROZEN = pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])


def reference_of(rows: int, space: TokenSpace) -> torch.Tensor:
    """Log-probabilities of another policy, ``[n, W]``."""
    head, hidden, _ = problem(rows + 1, space)
    with torch.no_grad():
        return normalised(head(hidden, token_space=space))[:rows]


def plain(head, hidden, targets, ref, space: TokenSpace, temperature: float):
    """Leaves, log-probabilities and sum p (log p - log q) in float64 with ordinary autograd."""
    weight = head.weight.detach().double().requires_grad_()
    states = hidden.detach().double().requires_grad_()
    open_columns = space.contains(torch.arange(space.start, space.stop))
    logits = (states @ weight.T)[:, space.start : space.stop] / temperature
    table = logits.masked_fill(~open_columns, -torch.inf).log_softmax(-1)
    difference = (table - ref.double()).masked_fill(~open_columns, 0.0)
    return (
        weight,
        states,
        table.gather(1, targets[:, None] - space.start).squeeze(1),
        (table.exp() * difference).sum(1),
    )


@pytest.mark.smoke
@FROZEN
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("rows", [1, ROWS_PER_CHUNK + 37])
def test_values_and_gradients_equal_plain_autograd(rows, space, temperature, frozen):
    """Alone, and beside log-probabilities that the loss uses too."""
    head, hidden, targets = problem(rows, space, frozen=frozen)
    ref = reference_of(rows, space)
    weight, states, expected_logps, expected = plain(head, hidden, targets, ref, space, temperature)
    coefficients = torch.linspace(-1, 2, rows)
    for share in (0.0, 1.0):
        hidden.grad = states.grad = weight.grad = head.weight.grad = None
        scores = head(hidden, targets, space, temperature, ref)
        assert worst(scores.kl - expected) < 5e-5
        assert scores.kl.min() > 0
        (scores.kl * coefficients + share * scores.logps.exp()).sum().backward()
        (expected * coefficients + share * expected_logps.exp()).sum().backward(retain_graph=True)
        assert relative(hidden.grad, states.grad) < 3e-5
        if frozen:
            assert head.weight.grad is None
        else:
            assert relative(head.weight.grad, weight.grad) < 3e-5
            assert not head.weight.grad[~space.contains(torch.arange(VOCAB))].any()


@FROZEN
def test_a_reference_changes_no_other_score(frozen):
    space = SPACES["slice"]
    head, hidden, targets = problem(40, space, frozen=frozen)
    without = head(hidden, targets, space, 0.8)
    assert without.kl is None
    without.logps.sum().backward()
    own, hidden.grad = hidden.grad, None
    beside = head(hidden, targets, space, 0.8, reference_of(40, space))
    assert torch.equal(without.logps, beside.logps) and torch.equal(without.entropy, beside.entropy)
    beside.logps.sum().backward()
    assert torch.equal(own, hidden.grad)


@pytest.mark.parametrize("width", [24, 64])
@pytest.mark.parametrize("rows", [1, ROWS_PER_CHUNK - 1, ROWS_PER_CHUNK, ROWS_PER_CHUNK + 1, 3 * ROWS_PER_CHUNK + 1])
def test_a_policy_is_at_distance_zero_from_itself(rows, width):
    """Exactly, with no gradient, however many rows are scored at once."""
    generator = torch.Generator().manual_seed(width)
    head = VocabularyHead(width, 96, bias=False).requires_grad_(False)
    head.weight.copy_(torch.randn(96, width, generator=generator))
    hidden = torch.randn(rows, width, generator=generator).requires_grad_()
    space, targets = TokenSpace(start=16, stop=80), torch.full((rows,), 20)
    with torch.no_grad():
        ref = normalised(head(hidden, None, space, 0.7))
    kl = head(hidden, targets, space, 0.7, ref).kl
    assert not kl.any()
    kl.sum().backward()
    assert not hidden.grad.any()


def test_the_estimators_mean_is_the_exact_one():
    """Over 200,000 tokens drawn from the policy, k1 and k3 agree with the sum within four standard errors."""
    space, draws = SPACES["slice"], 200_000
    head, hidden, targets = problem(1, space)
    ref = reference_of(1, space)
    with torch.no_grad():
        exact = float(head(hidden, targets, space, 2.0, ref).kl)
        table = normalised(head(hidden, None, space, 2.0))[0].double()
    tokens = torch.multinomial(table.exp(), draws, replacement=True, generator=torch.Generator().manual_seed(2))
    for estimator in ("k1", "k3"):
        values = kl_estimate(ref[0].double()[tokens], table[tokens], estimator)
        error = float(values.std()) / math.sqrt(draws)
        assert 0 < error < 0.05 * exact
        assert abs(float(values.mean()) - exact) < 4 * error


def test_models_without_the_head_have_the_same_kl():
    """``gather_logps`` on full logits, with ordinary autograd."""
    space = SPACES["excluded"]
    head, hidden, targets = problem(30, space)
    ref = reference_of(30, space)
    scores = head(hidden, targets, space, 0.9, ref)
    (scores.kl.sum() - scores.logps.sum()).backward()
    own, hidden.grad = hidden.grad, None
    other = gather_logps(head(hidden, None, space, 0.9), targets, space, ref)
    (other.kl.sum() - other.logps.sum()).backward()
    assert worst(scores.kl - other.kl) < 1e-5
    assert relative(own, hidden.grad.double()) < 1e-5
    assert own.shape == (30, SIZE)


@pytest.mark.parametrize("guidance", [None, 1.5])
def test_canvases_against_another_model(guidance):
    """``score_tokens`` with ``token_logprobs`` of a moved model: the sum over the codebook of both guided policies."""
    model, moved = tiny_model(), tiny_model()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    policy = MMaDAPolicy(model.config, tiny_processor())
    canvas = policy.encode([{"prompt": "w3 w4"}, {"prompt": "w7"}], "t2i", image_tokens=16)
    canvas.ids[canvas.fill_mask] = torch.arange(32) + policy.config.image_token_offset
    hidden = canvas.fill_mask & (torch.arange(canvas.ids.shape[1]) % 2 == 0)
    noisy = (canvas, hidden, hidden, None, 0.8, guidance)
    tables = []
    with torch.no_grad():
        for own in (model, moved):
            both = own(**policy.guided_inputs(canvas, hidden), select=torch.cat([hidden, hidden])).logits.double()
            c, u = both.chunk(2)
            logits = c if guidance is None else u + (guidance + 1) * (c - u)
            tables.append((logits[:, 197:261] / 0.8).log_softmax(-1))
        ref = token_logprobs(moved, policy, *noisy)
        scores = score_tokens(model, policy, *noisy, ref)
    assert worst(ref - tables[1]) < 2e-5
    expected = (tables[0].exp() * (tables[0] - tables[1])).sum(-1)
    assert worst(scores.kl[hidden] - expected) < 2e-5
    assert expected.min() > 1e-4 and not scores.kl[~hidden].any()


# ---- in the loss ----

TABLE = {
    # rows: mean over two scored tokens of 0.5 KL, minus the surrogate at ratio 1 and advantages 2 and -1.
    ("token", "masked"): ([0.5 * 0.3 - 2.0, 0.5 * 0.25 + 1.0], [0.3, 0.25]),
    # |o| = 4 and 5 with 2 and 1 scored tokens.
    ("token", "completion"): ([2 * (0.5 * 0.3 - 2.0) / 4, (0.5 * 0.25 + 1.0) / 5], [0.3, 0.25]),
    ("sequence", "masked"): ([0.5 * 0.3 - 2.0, 0.5 * 0.25 + 1.0], [0.3, 0.25]),
    ("sequence_sum", "masked"): ([0.5 * 0.3 - 2.0, 0.5 * 0.25 + 1.0], [0.3, 0.25]),
}


@pytest.mark.parametrize(("level", "normalization"), TABLE)
def test_hand_table(level, normalization):
    """The exact KL is a mean over scored tokens at every level, and what lies outside the target is ignored."""
    rows, kls = TABLE[level, normalization]
    logps = torch.full((2, 3), -1.0, requires_grad=True)
    exact = torch.tensor([[0.2, 0.4, 9.0], [0.25, 9.0, 9.0]], requires_grad=True)
    target = torch.tensor([[True, True, False], [True, False, False]])
    loss = policy_loss(
        epsilon=0.2,
        epsilon_high=0.2,
        beta=0.5,
        kl_estimator="exact",
        importance_sampling_level=level,
        length_normalization=normalization,
    )
    lengths, advantages = torch.tensor([4.0, 5.0]), torch.tensor([2.0, -1.0])
    terms = terms_of(loss, logps, logps.detach(), None, advantages, target, target.float(), lengths, exact)
    assert terms.losses.tolist() == pytest.approx(rows)
    assert terms.kl.tolist() == pytest.approx(kls)
    terms.losses.sum().backward()
    divisor = lengths if normalization == "completion" else torch.tensor([2.0, 1.0])
    expected = torch.where(target, 0.5 / divisor[:, None], 0.0)
    assert torch.allclose(exact.grad, expected)


@pytest.mark.parametrize("reduce", ["per_token", "signed"])
def test_a_token_of_mixed_draws_has_the_mean_of_their_exact_kl(reduce):
    """However many draws score a token, it counts once; its weights in the mixture are those of log-probabilities alone."""
    logps = torch.full((3, 3), -1.0)
    exact = torch.tensor([[0.2, 0.4, 9.0], [0.6, 9.0, 9.0], [0.1, 0.8, 9.0]], requires_grad=True)
    target = torch.tensor([[True, True, False], [True, False, False], [True, True, False]])
    loss = policy_loss(beta=0.5, kl_estimator="exact", reduce=reduce)
    weight, lengths, advantages = target * 0.7, torch.tensor([3.0]), torch.tensor([1.0])
    terms = terms_of(loss, logps, logps, None, advantages, target, weight, lengths, exact)
    kl = (torch.tensor([0.2, 0.6, 0.1]).mean() + torch.tensor([0.4, 0.8]).mean()) / 2
    assert terms.kl.tolist() == pytest.approx([kl.item()])
    assert terms.losses.tolist() == pytest.approx([0.5 * kl.item() - 1.0])
    terms.losses.sum().backward()
    expected = torch.tensor([[1 / 3, 1 / 2, 0.0], [1 / 3, 0.0, 0.0], [1 / 3, 1 / 2, 0.0]]) * 0.5 / 2
    assert torch.allclose(exact.grad, expected)
