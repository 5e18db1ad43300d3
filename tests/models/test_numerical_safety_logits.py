"""Numerical safety of logits, the head and the likelihood: -inf logits, half precision, one token, nothing selected."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unigrpo.algorithm.likelihood import score_tokens, token_logprobs
from unigrpo.models import MMaDAPolicy
from unigrpo.models.draw import Draw, TokenScores, choose_tokens, draw_columns
from unigrpo.models.forward import MaskedDiffusionMixin, combine_guidance
from unigrpo.models.head import LEAST_TEMPERATURE, VocabularyHead, exact_kl, gather_logps, normalised
from unigrpo.types import Canvas, TokenSpace

from ..support.tiny import tiny_model, tiny_processor


bounded = settings(max_examples=60, deadline=None, derandomize=True)
NAN, INF = math.nan, math.inf
HALVES = (torch.float16, torch.bfloat16)
UNIFORM = st.one_of(st.sampled_from([0.0, 1 - 2**-53]), st.floats(0, 1, exclude_max=True))
FROZEN = pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])


def held(scores: TokenScores) -> list[torch.Tensor]:
    """What a model said of its tokens, without what it was not asked."""
    return [own for own in scores if own is not None]


def finite(*tensors: torch.Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


# ---- logits ----


@st.composite
def logits(draw, extra: tuple[float, ...] = (-INF, torch.finfo(torch.float32).min)):
    """Rows of logits, one to seven open and closed columns, sometimes behind more than a block of closed ones."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    entry = st.one_of(st.floats(-1e4, 1e4, width=32), st.floats(-3, 3, width=32), st.sampled_from(extra))
    table = torch.tensor([[draw(entry) for _ in range(width)] for _ in range(rows)])
    table[:, draw(st.integers(0, width - 1))] = draw(st.floats(-50, 50, width=32))
    return torch.nn.functional.pad(table, (draw(st.sampled_from([0, 0, 600])), 0), value=extra[0])


def wide(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp64 log-probabilities, 0 where there is no mass, and probabilities."""
    logps = table.double().log_softmax(dim=1)
    return logps.masked_fill(logps.exp() == 0, 0.0), logps.exp()


SMALLEST = 2.0**-149
"""Of the numbers above zero in fp32; below 2**-126 they lie so far apart."""


@bounded
@given(logits(), st.lists(UNIFORM, min_size=4, max_size=4), st.sampled_from([True, False, False]))
@example(torch.tensor([[-103.0, 0.0]]), [0.0], False)
def test_a_closed_column_is_never_drawn_and_adds_no_entropy(table, numbers, greedy):
    draws = None if greedy else torch.tensor(numbers[: len(table)], dtype=torch.float64)
    drawn = choose_tokens(table, Draw(uniforms=draws, entropy=True))
    logps, probs = wide(table)
    picked = drawn.tokens[:, None]
    assert (probs.gather(1, picked) > 0).all()
    assert finite(*held(drawn))
    known = logps.gather(1, picked).squeeze(1)
    # Where the softmax has no digits left, the logarithm has none either.
    spacing = 2 * SMALLEST / probs.gather(1, picked).squeeze(1)
    assert ((drawn.logps.double() - known).abs() <= 1e-5 + 1e-4 * known.abs() + spacing).all()
    # Entropy is a difference of logits: it is as exact as they are large.
    largest = table.masked_fill(probs == 0, 0.0).abs().amax(dim=1).double()
    assert ((drawn.entropy - -(probs * logps).sum(dim=1)).abs() <= 1e-5 + 1e-6 * largest + spacing).all()


@pytest.mark.parametrize("row", [[NAN, 0.0, 1.0], [INF, 0.0, 1.0], [-INF] * 3, [NAN] * 3], ids=str)
@pytest.mark.parametrize("padding", [0, 509, 700])
@pytest.mark.parametrize("draws", [None, 0.0, 0.999])
def test_a_row_without_a_distribution_has_a_column_and_the_log_probability_nan(row, padding, draws):
    table = torch.nn.functional.pad(torch.tensor([row, [0.0, 1.0, 2.0]]), (0, padding), value=-INF)
    draws = None if draws is None else torch.full((2,), draws, dtype=torch.float64)
    drawn = choose_tokens(table, Draw(uniforms=draws, entropy=True))
    assert drawn.logps.isnan().tolist() == drawn.entropy.isnan().tolist() == [True, False]
    assert 0 <= int(drawn.tokens[0]) < table.shape[1] and 0 <= int(drawn.tokens[1]) < 3


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_logits_are_read_in_fp32(dtype):
    table = torch.randn(5, 700, generator=torch.Generator().manual_seed(0)).to(dtype)
    draws, targets, space = torch.linspace(0, 0.9, 5).double(), torch.arange(5), TokenSpace(start=0, stop=700)
    for own, other in zip(
        [
            *held(choose_tokens(table, Draw(uniforms=draws, entropy=True))),
            *held(gather_logps(table, targets, space, table)),
        ],
        [
            *held(choose_tokens(table.float(), Draw(uniforms=draws, entropy=True))),
            *held(gather_logps(table.float(), targets, space, table.float())),
        ],
        strict=True,
    ):
        assert torch.equal(own, other) and own.dtype in (torch.float32, torch.int64)
    assert combine_guidance(table[:4] * 1e3, 3.0).dtype == torch.float32


def test_nothing_and_one_column():
    nothing, none = torch.zeros(0, 5), torch.zeros(0, dtype=torch.float64)
    for draws in (none, None):
        assert [own.tolist() for own in held(choose_tokens(nothing, Draw(uniforms=draws, entropy=True)))] == [[]] * 4
    assert draw_columns(nothing, none).tolist() == []
    assert normalised(nothing).shape == (0, 5)
    one = choose_tokens(torch.tensor([[5.0], [-1e30]]), Draw(uniforms=torch.tensor([0.0, 0.9]).double(), entropy=True))
    assert [own.tolist() for own in held(one)] == [[0, 0]] * 4


@bounded
@given(logits(), logits(), st.integers(0, 6))
def test_scores_of_logits_with_closed_columns_are_those_of_float64(table, other, target):
    rows, width = min(len(table), len(other)), min(table.shape[1], other.shape[1])
    table, other = table[:rows, -width:], other[:rows, -width:]
    table, other = (own.index_fill(1, torch.tensor([width - 1]), 0.5) for own in (table, other))
    # What is closed in the reference is closed in the policy; the reverse may differ.
    ref_logps = other.double().log_softmax(dim=1).clamp(min=-1e6)
    table = table.masked_fill(ref_logps < -1e5, -INF).requires_grad_()
    logps, probs = wide(table.detach())
    targets = torch.full((rows,), target % width)
    scores = gather_logps(table, targets, TokenSpace(start=0, stop=width), normalised(other))
    largest = 1e-6 * (20 + table.detach().masked_fill(probs == 0, 0.0).abs().max() + other.clamp(-1e4).abs().max())
    assert finite(scores.entropy, scores.kl)
    assert ((scores.entropy - -(probs * logps).sum(dim=1)).abs() <= largest).all()
    expected = (probs * (logps - ref_logps)).sum(dim=1)
    assert ((scores.kl - expected).abs() <= largest).all()
    scores.kl.sum().backward()
    slope = probs * (logps - ref_logps - expected[:, None])
    assert ((table.grad - slope).abs() <= largest).all()
    table.grad = None
    gather_logps(table, targets, TokenSpace(start=0, stop=width)).logps.sum().backward()
    assert finite(table.grad)


def test_the_kl_to_a_reference_that_closes_a_likely_token_is_huge():
    table = torch.tensor([[0.0, 0.0], [0.0, -INF]], requires_grad=True)
    kl = exact_kl(table, torch.tensor([[0.0, -INF], [0.0, -INF]]))
    assert kl[0] > 1e38 and kl[1] == 0
    assert gather_logps(table, torch.tensor([1, 1]), TokenSpace(start=0, stop=2)).logps[1] == -INF


# ---- the head ----


def problem(rows: int, width: int = 9, dtype=torch.float32, frozen: bool = True):
    """A head with hidden states, targets and a reference."""
    generator = torch.Generator().manual_seed(rows)
    head = VocabularyHead(4, width, bias=False, dtype=dtype).requires_grad_(not frozen)
    with torch.no_grad():
        head.weight.copy_(torch.randn(width, 4, generator=generator))
    hidden = torch.randn(rows, 4, generator=generator).to(dtype).requires_grad_()
    return head, hidden, torch.arange(rows) % width, normalised(torch.randn(rows, width, generator=generator))


@FROZEN
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("width", [1, 9])
def test_the_head_forward_and_backward_of_no_row_one_row_and_one_token(rows, width, dtype, frozen):
    head, hidden, targets, reference = problem(rows, width, dtype, frozen)
    scores = head(hidden, targets, ref_logprobs=reference)
    assert {own.dtype for own in held(scores)} == {torch.float32}
    assert {own.shape for own in held(scores)} == {(rows,)}
    (scores.logps.sum() + scores.kl.sum()).backward()
    leaves = [hidden] if frozen else [hidden, head.weight]
    for leaf in leaves:
        assert finite(leaf.grad) and leaf.grad.dtype == dtype
        if width == 1 or not rows:
            assert not leaf.grad.any()
    if width == 1:
        assert not scores.logps.any() and not scores.entropy.any()
    assert head(hidden).dtype == torch.float32
    drawn = head(hidden, draw=Draw(uniforms=torch.zeros(rows, dtype=torch.float64), entropy=True))
    assert finite(*held(drawn)) and len(drawn.tokens) == rows


@FROZEN
@pytest.mark.parametrize("temperature", [LEAST_TEMPERATURE, 1e-6, 1e6, 1e30, INF])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_any_temperature_gives_finite_scores_and_gradients(temperature, scale, frozen):
    head, hidden, targets, reference = problem(5, frozen=frozen)
    space = TokenSpace(start=0, stop=9, exclude=(8,))
    states = hidden * scale
    scores = head(states, targets, space, temperature, reference)
    # At the least temperature the score itself is as large as 1e23, and so is its slope.
    assert finite(*held(scores))
    (scores.logps.sum() + scores.kl.sum()).backward()
    assert finite(hidden.grad, *(parameter.grad for parameter in head.parameters() if not frozen))
    draws = torch.linspace(0, 0.9, 5).double()
    drawn = head(states.detach(), None, space, temperature, draw=Draw(uniforms=draws, entropy=True))
    assert finite(*held(drawn)) and not drawn.tokens.eq(8).any()
    if temperature < 1e-3:
        best = head(states.detach(), None, space, draw=Draw())
        assert torch.equal(drawn.tokens, best.tokens) and not drawn.entropy.any()
    if temperature > 1e20:
        assert drawn.entropy.tolist() == pytest.approx([math.log(8)] * 5, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-21, NAN])
@pytest.mark.parametrize("what", ["logits", "scores", "draw"])
def test_temperatures_without_a_distribution_are_refused(temperature, what):
    head, hidden, targets, _ = problem(2)
    options = {"logits": {}, "scores": {"targets": targets}, "draw": {"draw": Draw()}}[what]
    with pytest.raises(ValueError, match=r"temperature=.* must be at least 1e-20"):
        head(hidden, temperature=temperature, **options)


@bounded
@given(logits(extra=(0.0,)), st.sampled_from([0.0, 0.5, 1e6, 1e30]))
def test_guidance_of_equal_branches_is_the_branch_at_any_scale(table, scale):
    assert torch.equal(combine_guidance(torch.cat([table, table]), scale), table)
    assert finite(combine_guidance(torch.cat([table, -table]), min(scale, 1e6)))
    assert combine_guidance(torch.zeros(0, 3), scale).shape == (0, 3)


# ---- the likelihood ----


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("exact", [True, False])
def test_the_likelihood_of_no_token_and_of_one(dtype, exact):
    model = tiny_model(dtype)
    policy = MMaDAPolicy(model.config, tiny_processor())
    ids = torch.tensor([[3, 4, 5, 6]])
    fill = torch.tensor([[False, False, True, True]])
    space = policy.token_space("text")
    canvas = Canvas(ids=ids, fill_mask=fill, attention_mask=torch.ones_like(fill), task="text", token_space=space)
    for count in (0, 1):
        target = fill & (fill.cumsum(1) <= count)
        reference = token_logprobs(model, policy, canvas, target, target)
        assert reference.shape == (count, space.width) and reference.dtype == torch.float32
        scores = score_tokens(model, policy, canvas, target, target, ref_logprobs=reference if exact else None)
        assert scores.logps.dtype == scores.entropy.dtype == torch.float32
        assert not scores.logps[~target].any() and finite(scores.logps, scores.entropy)
        model.zero_grad()
        (scores.logps.sum() + (scores.kl.sum() if exact else 0.0)).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert finite(*gradients)
        assert any(bool(own.any()) for own in gradients) == bool(count)


def test_guidance_keeps_a_column_closed_that_is_closed_in_both_branches():
    rows = torch.tensor([[1.0, -torch.inf, 2.0], [0.5, -torch.inf, 0.0]])
    guided = combine_guidance(rows, 3.5)
    assert guided[0, [0, 2]].tolist() == [0.5 + 4.5 * 0.5, 4.5 * 2.0]
    assert guided.softmax(dim=-1)[0, 1] == 0.0


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_foreign_model_refuses_a_temperature_that_divides_by_nothing(temperature):
    class Bare:
        def forward(self, ids):
            raise AssertionError("the temperature is checked first")

    class Foreign(MaskedDiffusionMixin, Bare):
        pass

    with pytest.raises(ValueError, match="temperature="):
        Foreign().forward(torch.zeros(1, 1), temperature=temperature)
