"""What is left out of a forward: the last block's unwanted positions, exactly; early commits, approximately; draws in the forward."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributed.utils import _cast_forward_inputs

from unigrpo.config.build import build_algorithms
from unigrpo.models.draw import Draw
from unigrpo.rollout.pipeline import Pipeline
from unigrpo.samplers import SemiAutoregressive
from unigrpo.samplers.parity import PublicTextSampler
from unigrpo.samplers.semi_autoregressive import EXACT_DECODING
from unigrpo.training.evaluation import eval_pipeline

from ..support.configs import config
from ..support.tiny import tiny_model
from ..support.tolerances import assert_rounding
from .test_text_sampler import (  # noqa: F401
    counting_model,
    golden_canvas,
    model_that_counts,
    sample,
    streams,
    text_canvas,
    written,
)


@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_selected_rows_and_their_gradients_equal_those_of_all_rows(policy, share):
    canvas = text_canvas(policy)
    select = canvas.fill_mask & (torch.rand(canvas.ids.shape, generator=torch.Generator().manual_seed(0)) < share)
    gradients = []
    for chosen in (select, None):
        model = tiny_model()
        logits = model(**policy.inputs(canvas), select=chosen).logits
        rows = logits if chosen is not None else logits[select]
        (rows.softmax(-1)[:, ::3].sum() + rows.square().mean()).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
        gradients[-1]["rows"] = rows.detach()
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, atol=2e-5, rtol=1e-4, msg=name)


def test_the_last_block_runs_only_the_selected_positions(policy, model):
    shapes: dict[int, list[int]] = {0: [], -1: []}
    for place, own in shapes.items():
        block = model.model.transformer["blocks"][place]
        block.ff_proj.register_forward_hook(lambda _, args, __, own=own: own.append(args[0].shape[1]))
    canvas = text_canvas(policy, length=24)
    select = canvas.fill_mask.clone()
    select[:, :-5] = False
    model(**policy.inputs(canvas), select=select)
    assert shapes == {0: [canvas.ids.shape[1]], -1: [5]}


def test_a_low_threshold_writes_a_block_a_forward(policy, model):
    rollout = sample(model, policy, text_canvas(policy), steps=24, stop="never", confidence_threshold=1e-9)
    assert model.forwards == 3
    assert set(written(rollout, 0)["steps"].tolist()) == {0, 8, 16}


def test_a_threshold_adds_what_is_more_probable_and_nothing_else(policy, model):
    options = {"steps": 24, "stop": "never", "temperature": 1.0}
    canvas = text_canvas(policy)
    threshold = 0.05
    rollout = sample(model, policy, canvas, confidence_threshold=threshold, **options)
    early = 0
    for row in range(4):
        own = written(rollout, row)
        for step in own["steps"].unique().tolist():
            probabilities = own["logps"][own["steps"] == step].exp().sort(descending=True).values
            # The schedule commits one token a step; all others are there because they are probable.
            assert bool((probabilities[1:] > threshold).all())
            early += len(probabilities) - 1
    assert early > 5
    strict = sample(counting_model(), policy, canvas, confidence_threshold=1 - 1e-7, **options)
    plain = sample(counting_model(), policy, canvas, **options)
    assert torch.equal(strict.canvas.ids, plain.canvas.ids)
    assert torch.equal(strict.step_map, plain.step_map)


def test_a_block_without_a_doubtful_hole_is_left_early(policy, model):
    """Bounded by log W, every block is left at once; by 0, none is; in between, what was left had little entropy."""
    canvas = text_canvas(policy)
    options = {"steps": 24, "stop": "never"}
    sample(model, policy, canvas, exit_entropy=math.log(200), **options)
    assert model.forwards == 3
    none = sample(counting_model(), policy, canvas, exit_entropy=0.0, **options)
    assert torch.equal(none.canvas.ids, sample(counting_model(), policy, canvas, **options).canvas.ids)


@torch.no_grad()
def test_the_entropy_that_decides_is_the_largest_of_the_holes(policy, model):
    canvas = text_canvas(policy)
    inputs = {**policy.inputs(canvas), "select": canvas.fill_mask, "token_space": canvas.token_space}
    table = model(**inputs).logits.double().log_softmax(-1)
    entropy = -(table.exp() * table.clamp(min=-1e9)).sum(-1).view(4, 24)[:, :8]
    drawn = model(**inputs, draw=Draw(entropy=True))
    assert_rounding(drawn.entropy.view(4, 24)[:, :8].double(), entropy)
    bound = float(entropy.amax(dim=1).sort().values[1:3].mean())
    leave = entropy.amax(dim=1) <= bound
    assert int(leave.sum()) == 2
    rollout = sample(model, policy, canvas, steps=24, stop="never", exit_entropy=bound)
    for row in range(4):
        at_once = written(rollout, row)["steps"][:8] == 0
        assert int(at_once.sum()) == (8 if leave[row] else 1)


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@torch.no_grad()
def test_the_door_draws_from_its_own_logits(policy, model, temperature):
    canvas = text_canvas(policy)
    inputs = {**policy.inputs(canvas), "select": canvas.fill_mask, "token_space": canvas.token_space}
    logits = model(**inputs, temperature=temperature).logits.double()
    table, n = logits.log_softmax(-1), int(canvas.fill_mask.sum())
    likeliest = model(**inputs, temperature=temperature, draw=Draw())
    assert torch.equal(likeliest.tokens, logits.argmax(-1))
    assert likeliest.entropy is None
    uniforms = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = model(**inputs, temperature=temperature, draw=Draw(uniforms=uniforms))
    inverse = (table.exp().cumsum(-1) < uniforms[:, None]).sum(-1)
    assert torch.equal(drawn.tokens, inverse)
    for output in (likeliest, drawn):
        assert_rounding(output.logps.double(), table.gather(1, output.tokens[:, None])[:, 0])


@pytest.mark.smoke
@torch.no_grad()
def test_reference_draws_are_the_public_codes_gumbel_noise(policy, model):
    """One fp64 uniform for every entry of ``[B, L, V]`` and step; argmax of exp(logit) / (-log u)^T; fp64 softmax."""
    prompt = torch.randint(3, 150, (3, 6), generator=torch.Generator().manual_seed(2))
    steps, block, length, temperature = 8, 8, 16, 0.8
    canvas = golden_canvas(prompt, length, None)
    generator = torch.Generator().manual_seed(7)
    x = torch.cat([prompt, torch.full((3, length), 184)], dim=1)
    for start in range(6, 6 + length, block):
        for _ in range(steps // 2):
            hidden = x == 184
            logits = model(input_ids=x).logits.double()
            u = torch.rand(logits.shape, dtype=torch.float64, generator=generator)
            drawn = (logits.exp() / (-u.log()) ** temperature).argmax(-1)
            confidence = logits.softmax(-1).gather(-1, drawn[..., None])[..., 0]
            confidence[:, start + block :] = -torch.inf
            confidence = confidence.masked_fill(~hidden, -torch.inf)
            places = confidence.topk(2, dim=1).indices
            x = x.scatter(1, places, drawn.gather(1, places))
    same = torch.Generator().manual_seed(7)
    fill = PublicTextSampler(steps=steps, block_length=block, temperature=temperature, stop="never")
    rollout = fill(model, policy, canvas, generators=[same] * 3)
    assert torch.equal(rollout.canvas.ids, x)
    with pytest.raises(ValueError, match="give the same one for every row"):
        fill(model, policy, canvas, generators=streams(3))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SemiAutoregressive, {"kv_cache": "both"}, "kv_cache='both' is not valid: choose one of"),
        (SemiAutoregressive, {"confidence_threshold": 1.5}, r"confidence_threshold=1.5 must lie in \(0, 1\)"),
        (SemiAutoregressive, {"exit_entropy": -0.1}, "exit_entropy=-0.1 must not be negative"),
        (SemiAutoregressive, {"confidence_threshold": 0.9, "remasking": "random"}, "remasking='random' does not"),
        (PublicTextSampler, {"kv_cache": "dual"}, "PublicTextSampler is exact"),
        (PublicTextSampler, {"exit_entropy": 0.0}, "PublicTextSampler is exact"),
    ],
)
def test_settings_that_cannot_work(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_engines_do_not_cast_the_uniforms():
    """FSDP with mixed precision casts tensors, also inside dataclasses, lists and dictionaries."""
    uniforms = torch.rand(5, dtype=torch.float64)
    draw = Draw(uniforms=uniforms)
    _, cast = _cast_forward_inputs(torch.bfloat16, draw=draw, other={"uniforms": uniforms})
    assert cast["other"]["uniforms"].dtype == torch.bfloat16
    assert cast["draw"].uniforms is uniforms
    with pytest.raises(ValueError, match=r"torch.float32; a vocabulary needs torch.float64"):
        Draw(uniforms=uniforms.float())


def test_held_out_answers_are_decoded_exactly():
    shortcuts = {"kv_cache": "dual", "confidence_threshold": 0.5, "exit_entropy": 0.2}
    args = config(**shortcuts)
    algorithms = build_algorithms(args)
    assert algorithms["text"].sampler.kv_cache == "dual"
    pipe = Pipeline(model=None, policy=None, args=args, rewards=None, algorithms=algorithms)
    for task in ("text", "mmu"):
        sampler = eval_pipeline(pipe).algorithms[task].sampler
        assert {key: getattr(sampler, key) for key in shortcuts} == EXACT_DECODING and sampler.temperature == 0
