"""The vocabulary head against a plain float64 log-softmax: values, gradients, entropy, and how much memory it takes."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from unigrpo.models import head as head_module
from unigrpo.models.draw import Draw, Truncation, truncated
from unigrpo.models.head import ROWS_PER_CHUNK, VocabularyHead
from unigrpo.types import TokenSpace

from ..support.heads import SIZE, SPACES, VOCAB, problem, relative, worst


def plain(head: VocabularyHead, hidden, targets, space: TokenSpace, temperature: float):
    """The same in float64 with ordinary autograd; returns leaves, log-probabilities and entropies."""
    weight = head.weight.detach().double().requires_grad_()
    states = hidden.detach().double().requires_grad_()
    logits = states @ weight.T / temperature
    closed = ~space.contains(torch.arange(VOCAB))
    table = logits.masked_fill(closed, -torch.inf).log_softmax(-1)
    entropy = -(table.exp() * table.masked_fill(closed, 0.0)).sum(-1)
    return weight, states, table.gather(1, targets[:, None]).squeeze(1), entropy


@pytest.mark.smoke
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("rows", [1, 2 * ROWS_PER_CHUNK + 37])
def test_values_and_gradients_equal_plain_autograd(rows, space, temperature, frozen):
    head, hidden, targets = problem(rows, space, frozen=frozen)
    logps, entropy = head(hidden, targets, space, temperature)[:2]
    weight, states, expected, expected_entropy = plain(head, hidden, targets, space, temperature)
    assert worst(logps - expected) < 2e-5
    assert worst(entropy - expected_entropy) < 2e-5
    assert not entropy.requires_grad
    coefficients = torch.linspace(-1, 2, rows)
    (logps.exp() * coefficients).sum().backward()
    (expected.exp() * coefficients).sum().backward()
    assert relative(hidden.grad, states.grad) < 2e-5
    if frozen:
        assert head.weight.grad is None
    else:
        assert relative(head.weight.grad, weight.grad) < 2e-5
        outside = ~space.contains(torch.arange(VOCAB))
        assert not head.weight.grad[outside].any()


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
@pytest.mark.parametrize("rows", [1, 2 * ROWS_PER_CHUNK + 37])
def test_a_weighted_sum_has_the_gradient_of_plain_autograd(rows, frozen):
    """Also where it is multiplied later, and where a coefficient of 0 stands beside a token that cannot come."""
    space = SPACES["slice"]
    head, hidden, targets = problem(rows, space, frozen=frozen)
    coefficients = torch.linspace(-1, 2, rows) * (torch.arange(rows) % 5 != 3)
    scores = head(hidden, targets, space, 0.6, coefficients=coefficients)
    weight, states, expected, expected_entropy = plain(head, hidden, targets, space, 0.6)
    assert worst(scores.logps - expected) < 2e-5 and worst(scores.entropy - expected_entropy) < 2e-5
    assert float(scores.total) == pytest.approx(float((coefficients * expected.detach()).sum()), rel=1e-5)
    assert not scores.logps.requires_grad
    (3 * scores.total).backward()
    (3 * (coefficients * expected).sum()).backward()
    assert relative(hidden.grad, states.grad) < 2e-5
    assert (head.weight.grad is None) == frozen
    assert frozen or relative(head.weight.grad, weight.grad) < 2e-5
    with torch.no_grad():
        assert float(head(hidden, targets, space, 0.6, coefficients=coefficients).total) == float(scores.total)


def test_rows_of_every_chunk_draw_with_their_own_number():
    rows, space = 2 * ROWS_PER_CHUNK + 37, SPACES["slice"]
    head, hidden, _ = problem(rows, space)
    uniforms = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = head(hidden, token_space=space, temperature=0.7, draw=Draw(uniforms=uniforms))
    cumulative = head(hidden, token_space=space, temperature=0.7).double().softmax(-1).cumsum(-1)
    assert torch.equal(drawn.tokens, torch.searchsorted(cumulative, uniforms[:, None]).squeeze(1) + space.start)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
def test_bf16_weights_are_scored_in_fp32(frozen, monkeypatch):
    monkeypatch.setattr(head_module, "VOCAB_PER_CHUNK", 50)
    space = SPACES["excluded"]
    head, hidden, targets = problem(70, space, torch.bfloat16, frozen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps, entropy = head(hidden, targets, space, 0.8)[:2]
    weight, states, expected, expected_entropy = plain(head, hidden, targets, space, 0.8)
    assert logps.dtype == entropy.dtype == torch.float32
    assert worst(logps - expected) < 2e-5
    assert worst(entropy - expected_entropy) < 2e-5
    logps.sum().backward()
    expected.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16
    assert relative(hidden.grad, states.grad) < 2**-8
    if not frozen:
        assert head.weight.grad.dtype == torch.bfloat16
        assert relative(head.weight.grad, weight.grad) < 2**-8


def test_gradients_accumulate_over_several_calls():
    space = SPACES["whole"]
    head, hidden, targets = problem(6, space, frozen=False)
    (head(hidden[:2], targets[:2])[0].sum() + 3 * head(hidden[2:], targets[2:])[0].sum()).backward()
    weight, states, expected, _ = plain(head, hidden, targets, space, 1.0)
    (expected * torch.tensor([1, 1, 3, 3, 3, 3])).sum().backward()
    assert relative(hidden.grad, states.grad) < 2e-5
    assert relative(head.weight.grad, weight.grad) < 2e-5


def test_logits_hold_the_smallest_number_at_excluded_ids():
    space = SPACES["slice"]
    head, hidden, _ = problem(4, space)
    logits = head(hidden.view(2, 2, SIZE), token_space=space, temperature=0.5)
    expected = (hidden.double() @ head.weight.double().T)[:, space.start : space.stop] / 0.5
    open_columns = space.contains(torch.arange(space.start, space.stop))
    assert relative(logits.view(4, -1)[:, open_columns], expected[:, open_columns]) < 1e-5
    assert (logits[..., ~open_columns] == torch.finfo(torch.float32).min).all()
    assert (logits.softmax(-1)[..., ~open_columns] == 0).all()


class Largest(TorchDispatchMode):
    """Remembers the largest fp32 tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else [out]:
            if isinstance(item, torch.Tensor) and item.dtype == torch.float32:
                self.numel = max(self.numel, item.numel())
        return out


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
def test_no_tensor_is_larger_than_one_chunk_of_logits(frozen):
    space = SPACES["whole"]
    head, hidden, targets = problem(3 * ROWS_PER_CHUNK, space, frozen=frozen)
    with Largest() as largest:
        head(hidden, targets, space, 0.7)[0].sum().backward()
    assert largest.numel == ROWS_PER_CHUNK * VOCAB


def test_a_bf16_weight_is_never_upcast_whole(monkeypatch):
    monkeypatch.setattr(head_module, "VOCAB_PER_CHUNK", 50)
    head, hidden, targets = problem(2, SPACES["whole"], torch.bfloat16)
    with Largest() as largest:
        head(hidden, targets)[0].sum().backward()
        head(hidden)
    assert largest.numel == 50 * SIZE


@pytest.mark.parametrize(
    "own", [Truncation(top_k=7), Truncation(top_p=0.6), Truncation(min_p=0.3), Truncation(5, 0.7, 0.2)]
)
def test_what_may_be_drawn_is_what_transformers_would_leave(own):
    logits = torch.randn(40, 1200, generator=torch.Generator().manual_seed(1)) * 4
    logits[:3] = torch.tensor([[0.0, 80.0, torch.finfo(torch.float32).min]]).T
    logits[0, 5] = 3.0
    left = logits
    warpers = [(own.top_k, TopKLogitsWarper), (own.top_p if own.top_p < 1 else 0, TopPLogitsWarper)]
    for value, warper in [*warpers, (own.min_p, MinPLogitsWarper)]:
        left = warper(value)(None, left) if value else left
    masses = truncated(logits.softmax(dim=1), own)
    # Equal logits stand and fall together here; there the order of a sort decides.
    assert torch.equal((masses > 0)[3:], left.isfinite()[3:])
    assert bool((masses[:3] > 0).gather(1, logits[:3].argmax(dim=1, keepdim=True)).all())
    assert bool((masses[1] > 0).all()) and torch.equal(masses[masses > 0], logits.softmax(dim=1)[masses > 0])
