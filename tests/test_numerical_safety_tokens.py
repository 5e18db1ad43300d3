"""Numerical safety of logits, masks and samplers: -inf logits, half precision, one token, nothing selected, no answer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.likelihood import score_tokens, token_logprobs
from unigrpo.models import DiffusionPolicy, MMaDAPolicy
from unigrpo.models.door import combine_guidance
from unigrpo.models.draw import Draw, choose_tokens, draw_columns
from unigrpo.models.head import LEAST_TEMPERATURE, VocabularyHead, exact_kl, gather_logps, normalised
from unigrpo.noising import NOISING, random_corruption, random_subset, timesteps
from unigrpo.noising.base import independent_subset
from unigrpo.rng import keyed_generator
from unigrpo.samplers import MASK_SCHEDULES, Emerge, LeftToRight, MaskGIT, SemiAutoregressive
from unigrpo.samplers.maskgit import gumbel, least
from unigrpo.samplers.semi_autoregressive import split_evenly, transfer_counts
from unigrpo.samplers.writing import scatter, uniforms
from unigrpo.types import Canvas, TokenSpace

from .test_noising import rollout
from .tiny import tiny_model, tiny_processor


pytestmark = pytest.mark.smoke

bounded = settings(max_examples=60, deadline=None, derandomize=True)
NAN, INF = math.nan, math.inf
HALVES = (torch.float16, torch.bfloat16)
FROZEN = pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])


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


@bounded
@given(logits(), st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4), st.booleans())
def test_a_closed_column_is_never_drawn_and_adds_no_entropy(table, numbers, greedy):
    draws = None if greedy else torch.tensor(numbers[: len(table)], dtype=torch.float64)
    drawn = choose_tokens(table, Draw(uniforms=draws, entropy=True))
    logps, probs = wide(table)
    picked = drawn.tokens[:, None]
    assert (probs.gather(1, picked) > 0).all()
    assert finite(*drawn)
    torch.testing.assert_close(drawn.logps.double()[:, None], logps.gather(1, picked), rtol=1e-4, atol=1e-5)
    # Entropy is a difference of logits: it is as exact as they are large.
    largest = table.masked_fill(probs == 0, 0.0).abs().amax(dim=1).double()
    assert ((drawn.entropy - -(probs * logps).sum(dim=1)).abs() <= 1e-5 + 1e-6 * largest).all()


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
        (*choose_tokens(table, Draw(uniforms=draws, entropy=True)), *gather_logps(table, targets, space, table)),
        (
            *choose_tokens(table.float(), Draw(uniforms=draws, entropy=True)),
            *gather_logps(table.float(), targets, space, table.float()),
        ),
        strict=True,
    ):
        assert torch.equal(own, other) and own.dtype in (torch.float32, torch.int64)
    assert combine_guidance(table[:4] * 1e3, 3.0).dtype == torch.float32


def test_uniforms_of_half_precision_are_refused():
    for dtype in (*HALVES, torch.float32):
        with pytest.raises(ValueError, match="a vocabulary needs"):
            Draw(uniforms=torch.zeros(1, dtype=dtype))


def test_nothing_and_one_column():
    nothing, none = torch.zeros(0, 5), torch.zeros(0, dtype=torch.float64)
    for draws in (none, None):
        assert [own.tolist() for own in choose_tokens(nothing, Draw(uniforms=draws, entropy=True))] == [[], [], []]
    assert draw_columns(nothing, none).tolist() == []
    assert normalised(nothing).shape == (0, 5)
    one = choose_tokens(torch.tensor([[5.0], [-1e30]]), Draw(uniforms=torch.tensor([0.0, 0.9]).double(), entropy=True))
    assert [own.tolist() for own in one] == [[0, 0], [0.0, 0.0], [0.0, 0.0]]


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
    assert {own.dtype for own in scores} == {torch.float32}
    assert {own.shape for own in scores} == {(rows,)}
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
    assert finite(*drawn) and len(drawn.tokens) == rows


@FROZEN
@pytest.mark.parametrize("temperature", [LEAST_TEMPERATURE, 1e-6, 1e6, 1e30, INF])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_any_temperature_gives_finite_scores_and_gradients(temperature, scale, frozen):
    head, hidden, targets, reference = problem(5, frozen=frozen)
    space = TokenSpace(start=0, stop=9, exclude=(8,))
    states = hidden * scale
    scores = head(states, targets, space, temperature, reference)
    # At the least temperature the score itself is as large as 1e23, and so is its slope.
    assert finite(*scores)
    (scores.logps.sum() + scores.kl.sum()).backward()
    assert finite(hidden.grad, *(parameter.grad for parameter in head.parameters() if not frozen))
    draws = torch.linspace(0, 0.9, 5).double()
    drawn = head(states.detach(), None, space, temperature, draw=Draw(uniforms=draws, entropy=True))
    assert finite(*drawn) and not drawn.tokens.eq(8).any()
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


# ---- noise ----


@pytest.mark.parametrize("weighting", ["uniform", "inverse_probability"])
@pytest.mark.parametrize("name", sorted(NOISING))
@settings(bounded, max_examples=25)
@given(
    st.lists(st.sampled_from([0, 0, 1, 2, 30]), max_size=3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
)
def test_noise_scores_answers_alone_with_finite_weights(name, weighting, lengths, updates, samples, p_prompt, mixed):
    """No answer: nothing is scored. One token and more: what is scored is hidden, and lies in the answer."""
    noising = NOISING[name][0](weighting=weighting, mixed=mixed, p_mask_prompt=p_prompt)
    rows = rollout(lengths or [1])
    rows = rows if lengths else rows.take(torch.zeros(0, dtype=torch.int64))
    noise = noising(rows, num_iterations=updates, num_samples=samples, key=(0, 0), rows=list(range(len(lengths))))
    answer, fill = (mask[:, None, None] for mask in (rows.completion_mask, rows.canvas.fill_mask))
    assert noise.target.shape[:2] == (len(lengths), updates) and noise.target.shape[2] >= 1
    assert not (noise.target & ~(noise.hidden & answer)).any()
    assert not (noise.hidden & ~fill & (p_prompt == 0)).any()
    assert finite(noise.weight, noise.mask_ratio)
    assert torch.equal(noise.weight > 0, noise.target)
    scored = noise.target.any(dim=3)
    if name != "ramp":
        # Every update scores something of every answer, in its first draw unless that is the empty half of a pair.
        assert torch.equal(scored.any(dim=2), (torch.tensor(lengths).view(-1, 1) > 0).expand(-1, updates))


@bounded
@given(
    st.sampled_from(["stratified", "paper_formula", "random", "truncated", "cosine"]),
    st.integers(1, 7),
    st.integers(1, 1000),
    st.sampled_from([0.0, 0.8, 0.999]),
    st.data(),
)
def test_timesteps_lie_in_their_range_for_one_update_and_one_step(rule, updates, total, lowest, data):
    t1 = data.draw(st.integers(1, total))
    steps = timesteps(rule, t1, updates, total, lowest, generator=keyed_generator("safety", t1))
    assert len(steps) == updates and all(1 <= t <= total for t in steps)


def test_subsets_of_nothing():
    generator, nothing = keyed_generator("safety"), torch.zeros(4, dtype=torch.bool)
    for mask in (nothing, nothing[:0]):
        assert not random_subset(mask, 3, generator=generator).any()
        assert not independent_subset(mask, 1.0, generator=generator).any()
    ids = torch.arange(4)
    assert torch.equal(random_corruption(nothing, ids, TokenSpace(start=0, stop=1), generator=generator), ids)
    one = random_corruption(~nothing, ids, TokenSpace(start=2, stop=4, exclude=(3,)), generator=generator)
    assert one.tolist() == [2] * 4


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


# ---- samplers ----


class Blank(DiffusionPolicy):
    """Eight tokens and a mask id; 7 stops an answer."""

    mask_token_id, pad_token_id, stop_token_ids = 8, 9, (7,)

    def __init__(self) -> None:
        pass

    def token_space(self, task):
        return TokenSpace(start=0, stop=8)

    def encode(self, rows, task="text", **lengths):
        raise NotImplementedError

    def decode(self, canvas, completion_mask):
        return [""] * len(canvas.ids)


def flat(select, token_space, temperature=1.0, draw=None, logits=0.0, **_):
    """A model whose logits are all ``logits``."""
    drawn = choose_tokens(torch.full((int(select.sum()), token_space.width), logits) / temperature, draw)
    return drawn._replace(tokens=drawn.tokens + token_space.start)


def canvas_of(prompt: int, holes: list[int]) -> Canvas:
    """Rows with ``prompt`` tokens and this many holes each."""
    place = torch.arange(prompt + max(holes)).expand(len(holes), -1)
    fill = (place >= prompt) & (place < prompt + torch.tensor(holes)[:, None])
    ids = torch.zeros_like(place).masked_fill(fill, 8)
    space = TokenSpace(start=0, stop=8)
    return Canvas(ids=ids, fill_mask=fill, attention_mask=torch.ones_like(fill), task="text", token_space=space)


SAMPLERS = {
    "semi_autoregressive": lambda steps, **own: SemiAutoregressive(steps=steps, block_length=40, **own),
    "random": lambda steps, **own: SemiAutoregressive(steps=steps, block_length=40, remasking="random", **own),
    "shortcuts": lambda steps, **own: SemiAutoregressive(
        steps=steps, block_length=40, confidence_threshold=0.5, exit_entropy=1.0, **own
    ),
    "left_to_right": lambda steps, **own: LeftToRight(**own),
    "maskgit": lambda steps, **own: MaskGIT(steps=steps, **{"guidance_scale": 0.0, **own}),
    "emerge": lambda steps, **own: Emerge(steps=steps, **{"guidance_scale": 0.0, **own}),
}


def fill(sampler, canvas: Canvas, model=flat):
    return sampler(model, Blank(), canvas, generators=[keyed_generator("row", row) for row in range(len(canvas.ids))])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@settings(bounded, max_examples=30)
@given(
    st.sampled_from([[0], [1], [0, 1], [5], [33, 0, 1]]),
    st.integers(0, 1),
    st.sampled_from([1, 2, 7, 50]),
    st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
)
def test_samplers_fill_any_canvas_in_any_number_of_steps(name, holes, prompt, steps, temperature):
    """No hole, one hole, one position, more steps than holes: nothing is left masked and nothing else is written."""
    if prompt + max(holes) == 0:
        return
    canvas = canvas_of(prompt, holes)
    done = fill(SAMPLERS[name](steps, temperature=temperature), canvas)
    written = done.canvas.ids
    assert not (written == 8).any()
    assert torch.equal(written[~canvas.fill_mask], canvas.ids[~canvas.fill_mask])
    assert torch.equal(done.completion_mask, done.step_map >= 0)
    assert not (done.completion_mask & ~canvas.fill_mask).any()
    assert finite(done.sampling_logps) and not done.sampling_logps[~done.completion_mask].any()
    expected = torch.full((int(done.completion_mask.sum()),), -math.log(8))
    torch.testing.assert_close(done.sampling_logps[done.completion_mask], expected)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_samplers_refuse_a_model_without_a_distribution(name, temperature, value):
    """Row 1 alone is broken; a token of it never enters the canvas."""

    def broken(**request):
        drawn = flat(**request)
        row = request["select"].nonzero()[:, 0]
        lost = flat(**request, logits=value)
        good = row < request["select"].shape[0] - 1
        return drawn._replace(logps=torch.where(good, drawn.logps, lost.logps))

    with pytest.raises(ValueError, match="no token can be drawn for row 1 at step 0: its logits hold NaN"):
        fill(SAMPLERS[name](1, temperature=temperature), canvas_of(1, [1, 1]), broken)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("setting", ["temperature", "guidance_scale"])
@pytest.mark.parametrize("value", [NAN, -1.0])
def test_samplers_refuse_settings_that_are_no_number(name, setting, value):
    with pytest.raises(ValueError, match=f"{setting}=.* must not be negative"):
        SAMPLERS[name](4, **{setting: value})


@bounded
@given(st.sampled_from(sorted(MASK_SCHEDULES)), st.integers(1, 10_000))
def test_mask_schedules_fall_from_one_to_zero(name, steps):
    schedule = MASK_SCHEDULES[name]
    assert schedule(0.0) == pytest.approx(1.0) and schedule(1.0) == pytest.approx(0.0, abs=1e-12)
    last, before = schedule(1 - 1 / steps), schedule(max(1 - 2 / steps, 0.0))
    assert 0 < last <= before <= 1


@bounded
@given(st.lists(st.integers(0, 40), min_size=1, max_size=3), st.integers(1, 50), st.integers(0, 9))
def test_tokens_are_shared_out_completely(masked, steps, parts):
    counts = transfer_counts(torch.tensor(masked), steps)
    assert counts.shape == (len(masked), steps) and counts.sum(dim=1).tolist() == masked
    assert int(counts.max() - counts.min(dim=1).values.min()) <= max(masked) + 1
    split = split_evenly(steps, parts)
    assert len(split) == parts and sum(split) == (steps if parts else 0)


def test_noise_and_ranks_at_their_edges():
    assert finite(gumbel(torch.tensor([0.0, 5e-324, 0.5, 1 - 2**-53], dtype=torch.float64)))
    confidence = torch.tensor([[3.0, 1.0, 2.0]])
    picked = [least(confidence, torch.tensor([count])).tolist()[0] for count in range(4)]
    assert picked == [[False] * 3, [False, True, False], [False, True, True], [True] * 3]
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    streams = [keyed_generator("row", row) for row in range(2)]
    assert uniforms(nothing, streams).tolist() == []
    assert not scatter(nothing, torch.zeros(0)).any()
    with pytest.raises(ValueError, match="steps=2 is less than the 3 blocks"):
        fill(replace(SemiAutoregressive(steps=2), block_length=1), canvas_of(1, [3]))
