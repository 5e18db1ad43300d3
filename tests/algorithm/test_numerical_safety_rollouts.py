"""Numerical safety of noise, samplers and statistics: no answer, one token, one step, a model without a distribution."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.algorithm.loss import LossTerms
from unigrpo.algorithm.noising import NOISING, random_corruption, random_subset, timesteps
from unigrpo.algorithm.noising.base import independent_subset
from unigrpo.models import DiffusionPolicy
from unigrpo.models.draw import choose_tokens
from unigrpo.samplers import MASK_SCHEDULES, Emerge, LeftToRight, MaskGIT, SemiAutoregressive
from unigrpo.samplers.base import scatter, uniforms
from unigrpo.samplers.maskgit import gumbel, least
from unigrpo.samplers.semi_autoregressive import split_evenly, transfer_counts
from unigrpo.training.diagnostics import (
    estimates,
    hidden_fifths,
    ratio_metrics,
    sampling_metrics,
    thinned,
    window_metrics,
)
from unigrpo.training.metrics import Metrics
from unigrpo.types import Canvas, TokenSpace, keyed_generator

from ..support.records import rollout


bounded = settings(max_examples=60, deadline=None, derandomize=True)
NAN, INF = math.nan, math.inf


def finite(*tensors: torch.Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


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
    noising = NOISING[name](weighting=weighting, mixed=mixed, p_mask_prompt=p_prompt)
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
    with pytest.raises(ValueError, match=f"{setting}=.* must (not be negative|be finite)"):
        SAMPLERS[name](4, **{setting: value})


@bounded
@given(st.sampled_from(sorted(MASK_SCHEDULES)), st.integers(1, 10_000))
def test_mask_schedules_fall_from_one_to_zero(name, steps):
    schedule = MASK_SCHEDULES[name]
    assert schedule(0.0) == pytest.approx(1.0) and schedule(1.0) == pytest.approx(0.0, abs=1e-12)
    last, before = schedule(1 - 1 / steps), schedule(max(1 - 2 / steps, 0.0))
    assert 0 < last <= before <= 1


@pytest.mark.smoke
@bounded
@given(st.lists(st.integers(0, 40), min_size=1, max_size=3), st.integers(1, 50), st.integers(0, 9))
def test_tokens_are_shared_out_completely(masked, steps, parts):
    counts = transfer_counts(masked, steps)
    assert len(counts) == steps and [sum(own) for own in zip(*counts, strict=True)] == masked
    assert all(
        max(own) - min(own) <= 1 and list(own) == sorted(own, reverse=True) for own in zip(*counts, strict=True)
    )
    split = split_evenly(steps, parts)
    assert len(split) == parts and sum(split) == (steps if parts else 0)


def test_noise_and_ranks_at_their_edges():
    assert finite(gumbel(torch.tensor([0.0, 5e-324, 0.5, 1 - 2**-53], dtype=torch.float64)))
    confidence = torch.tensor([[3.0, 1.0, 2.0]])
    picked = [least(confidence, torch.tensor([count])).tolist()[0] for count in range(4)]
    assert picked == [[False] * 3, [False, True, False], [False, True, True], [True] * 3]
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    streams = [keyed_generator("row", row) for row in range(2)]
    assert uniforms([0, 0], streams, "cpu").tolist() == []
    assert not scatter(nothing, torch.zeros(0)).any()
    with pytest.raises(ValueError, match="steps=2 is less than the 3 blocks"):
        fill(replace(SemiAutoregressive(steps=2), block_length=1), canvas_of(1, [3]))


# ---- statistics ----


def logged(function, *arguments) -> dict[str, float]:
    metrics = Metrics()
    function(metrics, *arguments)
    return metrics.flush()


def ratios(*values: float) -> LossTerms:
    nowhere, nothing = torch.zeros(1, len(values), dtype=torch.bool), torch.zeros(1)
    return LossTerms(
        losses=nothing, kl=nothing, ratios=torch.tensor([values]), low=nowhere, high=nowhere, scored=~nowhere
    )


def test_statistics_of_no_one_and_infinite_ratios():
    assert logged(ratio_metrics, ratios(), "text") == {}
    one = logged(ratio_metrics, ratios(0.0), "text")
    assert one["ratio/max"] == 0.0 and "ratio/ess" not in one and "ratio/std" not in one
    infinite = logged(ratio_metrics, ratios(1.0, INF), "text")
    assert infinite["ratio/max"] == INF
    assert not any(math.isnan(value) for value in infinite.values())
    assert logged(sampling_metrics, torch.zeros(0), torch.zeros(0), "text") == {}


def test_statistics_of_a_row_without_an_answer():
    nothing = torch.zeros(1, 2, 3, dtype=torch.bool)
    row = SimpleNamespace(
        task="text",
        hidden=nothing,
        target=nothing,
        completion_mask=torch.zeros(3, dtype=torch.bool),
        old_logps=torch.zeros(1, 2, 3),
        old_known=torch.ones(1, dtype=torch.bool),
    )
    assert hidden_fifths(row).tolist() == estimates(row).tolist() == []
    assert logged(window_metrics, [row]) == {}
    assert not thinned(nothing).any()
    assert thinned(torch.ones(1, 1, dtype=torch.bool)).tolist() == [[True]]
    assert int(thinned(torch.ones(3, 50, dtype=torch.bool), 10).sum()) == 10
