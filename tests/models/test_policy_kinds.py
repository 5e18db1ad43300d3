"""The trainer over block-causal policies and over policies without a mask id."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.algorithm.noising import random_corruption
from unigrpo.samplers import Emerge, LeftToRight, MaskGIT, SemiAutoregressive
from unigrpo.samplers.base import CanvasWriter
from unigrpo.training.checkpoints.window_checkpoints import window_file
from unigrpo.training.checkpoints.window_file import load_window
from unigrpo.training.old_and_reference import add_old_and_reference
from unigrpo.types import TokenSpace, keyed_generator

from ..support.laws import first_window, losses_of
from ..support.saving import without_identity
from ..support.tiny import TRAINING, low_ids
from ..support.tiny_policies import BLOCK, ROWS, UniformNoisePolicy, block_causal, uniform_noise


KINDS = [block_causal, uniform_noise]

SETTINGS = {
    **TRAINING,
    "max_completion_length": 2 * BLOCK,
    "steps": 2 * BLOCK,
    "block_length": BLOCK,
    "learning_rate": 2e-3,
}


def make(build, folder, **settings) -> UniGRPOTrainer:
    """A trainer of a tiny policy; its adapter-free reference is a frozen copy."""
    model, policy, rows = build()
    args = UniGRPOConfig(str(folder), **{**SETTINGS, **settings})
    return UniGRPOTrainer(model, low_ids, args, rows * 2, processing_class=policy.processor)


def encoded(policy, rows=ROWS, length: int = 2 * BLOCK):
    return policy.encode(rows, max_completion_length=length)


def streams(count: int, start: int = 0) -> list[torch.Generator]:
    return [keyed_generator("kinds", start + row) for row in range(count)]


# ---- training ----


@pytest.mark.parametrize("build", KINDS)
@pytest.mark.parametrize("noising", [{"p_mask_prompt": 0.4, "num_noise_samples": 2}, {"noising": "trajectory"}])
def test_ratio_is_one_and_kl_zero_at_the_start(build, noising, tmp_path):
    trainer = make(build, tmp_path, **noising)
    window = first_window(trainer)
    add_old_and_reference(trainer.pipeline(), window, always_old=True)
    seen = 0
    for k in range(2):
        for batch, _, terms in losses_of(trainer, window, k):
            assert batch.old_logps is not None
            assert (batch.noisy_ids is None) == (build is block_causal)
            assert bool((terms.ratio == 1).all()) and bool((terms.kl == 0).all())
            seen += 1
    assert seen >= 4


@pytest.mark.smoke
@pytest.mark.parametrize("build", KINDS)
def test_the_advantage_says_where_the_log_probability_goes(build, tmp_path):
    trainer = make(build, tmp_path, beta=0.0)
    window = first_window(trainer)
    for row in window.experiences:
        row.advantage = -1.0

    def scores() -> float:
        with torch.no_grad():
            found = [
                score_tokens(trainer.model, trainer.policy, b.canvas, b.hidden, b.target, b.noisy_ids) for b in seen
            ]
        return sum(float(own.logps.sum()) for own in found)

    seen = [batch for batch, loss, _ in losses_of(trainer, window) if loss.backward() is None]
    before = scores()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-0.02)
    assert scores() - before < -0.01


def test_resuming_inside_a_window_changes_nothing(tmp_path):
    """The noise is saved with the window: another seed would draw other tokens."""
    settings = {"p_mask_prompt": 0.3, "save_strategy": "steps", "save_steps": 1}
    whole = make(uniform_noise, tmp_path / "run", **settings)
    whole.train()
    final = {name: value.clone() for name, value in whole.model.named_parameters()}
    checkpoint = tmp_path / "run" / "checkpoint-3"
    rows = load_window(window_file(checkpoint, 0))[0]
    assert len(rows) == 16 and all(row.input_ids is not None for row in rows)
    without_identity(checkpoint)
    again = make(uniform_noise, tmp_path / "again", **{**settings, "save_strategy": "no", "seed": 7})
    with pytest.warns(UserWarning, match="does not say of which run it is"):
        again.train(resume_from_checkpoint=str(checkpoint))
    assert all(torch.equal(value, final[name]) for name, value in again.model.named_parameters())


# ---- block-causal ----


IN_ORDER = [
    ("left_to_right", "trajectory"),
    ("left_to_right", "autoregressive"),
    ("semi_autoregressive", "trajectory"),
]


@pytest.mark.parametrize(("sampler", "noising"), IN_ORDER)
def test_training_scores_a_block_causal_rollout_as_it_was_sampled(sampler, noising, tmp_path):
    """Up to tokens written behind a stop token before it, which the noising hides: in blocks none is allowed to stop."""
    law = {"temperature": 0.7, "num_noise_samples": 0, "reduce": "per_token"}
    trainer = make(block_causal, tmp_path, sampler=sampler, noising=noising, steps=BLOCK, **law)
    in_blocks = sampler == "semi_autoregressive"
    if in_blocks:
        trainer.policy.stop_token_ids = ()
    window = first_window(trainer)
    add_old_and_reference(trainer.pipeline(), window, always_old=True)
    lengths = set()
    for row in window.experiences:
        scored = row.completion_mask & row.target[0].any(dim=0)
        assert torch.equal(scored, row.completion_mask) and int(row.target[0].sum()) == int(scored.sum())
        assert (row.old_logps[0].sum(dim=0) - row.sampling_logps)[scored].abs().max() < 1e-5
        lengths.add(int(scored.sum()))
    assert lengths == {2 * BLOCK} if in_blocks else len(lengths) > 1


def test_later_blocks_need_not_be_there():
    """The first block of an answer scores the same on a canvas that ends with it."""
    model, policy, rows = block_causal()
    canvas = encoded(policy)
    rollout = SemiAutoregressive(steps=4, block_length=BLOCK, stop="never")(
        model, policy, canvas, generators=streams(len(rows))
    )
    ids, first = rollout.canvas.ids, canvas.fill_mask.cumsum(1) <= BLOCK
    target = canvas.fill_mask & first
    whole = score_tokens(model, policy, rollout.canvas, target, target).logps[:, :-BLOCK]
    short = encoded(policy, length=BLOCK)
    assert torch.equal(short.fill_mask, target[:, :-BLOCK])
    short = replace(short, ids=ids[:, :-BLOCK])
    assert (score_tokens(model, policy, short, short.fill_mask, short.fill_mask).logps - whole).abs().max() < 1e-5


# ---- without a mask id ----


def test_holes_start_as_random_tokens_of_the_rows_own_stream():
    _, policy, rows = uniform_noise()
    canvas = encoded(policy)
    ids = CanvasWriter(canvas, policy, 0.0, streams(len(rows))).ids
    assert torch.equal(ids[~canvas.fill_mask], canvas.ids[~canvas.fill_mask])
    assert canvas.token_space.contains(ids[canvas.fill_mask]).all()
    for row, own in enumerate(rows):
        alone = encoded(policy, [own])
        drawn = CanvasWriter(alone, policy, 0.0, streams(1, row)).ids
        assert torch.equal(drawn[alone.fill_mask], ids[row][canvas.fill_mask[row]])
    assert len({tuple(row) for row in ids[:, -2 * BLOCK :].tolist()}) == len(rows)


def test_a_policy_with_a_mask_id_draws_nothing_for_its_holes():
    _, policy, rows = block_causal()
    generators = streams(len(rows))
    canvas = encoded(policy)
    assert torch.equal(CanvasWriter(canvas, policy, 0.0, generators).ids, canvas.ids)
    fresh = [stream.get_state() for stream in streams(len(rows))]
    assert all(torch.equal(a.get_state(), b) for a, b in zip(generators, fresh, strict=True))


@pytest.mark.parametrize(
    "sampler",
    [
        SemiAutoregressive(steps=4, block_length=BLOCK, stop="first"),
        SemiAutoregressive(steps=4, block_length=BLOCK, stop="block_end", remasking="random"),
        LeftToRight(),
        Emerge(steps=4, guidance_scale=0.0),
        MaskGIT(steps=4, guidance_scale=0.0),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_every_sampler_fills_a_canvas_without_a_mask_id(sampler):
    """A hole that happens to hold a stop token neither ends an answer nor counts as written, and seeds decide all."""
    model, policy, rows = uniform_noise()
    policy.stop_token_ids = (2, 3, 4)
    canvas = encoded(policy)
    assert torch.isin(CanvasWriter(canvas, policy, 0.0, streams(len(rows))).ids, torch.tensor([2, 3, 4])).any()
    rollout = sampler(model, policy, canvas, generators=streams(len(rows)))
    again = sampler(model, policy, canvas, generators=streams(len(rows)))
    assert torch.equal(rollout.canvas.ids, again.canvas.ids)
    counted, wrote = rollout.completion_mask, rollout.step_map >= 0
    assert counted.any(dim=1).all() and not (counted & ~wrote).any()
    assert canvas.token_space.contains(rollout.canvas.ids[wrote]).all()
    assert torch.equal(rollout.sampling_logps != 0, wrote)
    if getattr(sampler, "stop", "first") == "block_end":
        return
    # Whatever the order of writing, an answer ends with its first stop token, and what stands behind it is padding.
    for ids, counts, fill in zip(rollout.canvas.ids, counted, canvas.fill_mask, strict=True):
        answer, tail = ids[counts], ids[fill & ~counts]
        assert not torch.isin(answer[:-1], torch.tensor([2, 3, 4])).any()
        assert (tail == policy.pad_token_id).all() and (not len(tail) or int(answer[-1]) in (2, 3, 4))


def test_random_tokens_are_uniform_and_only_where_hidden():
    space = TokenSpace(start=3, stop=9, exclude=(4, 7))
    ids = torch.full((8000,), 20)
    hidden = torch.rand(2, 3, 8000, generator=torch.Generator().manual_seed(0)) < 0.5
    noisy = random_corruption(hidden, ids, space, generator=keyed_generator("a"))
    assert noisy.shape == hidden.shape and (noisy[~hidden] == 20).all()
    share = noisy[hidden].bincount(minlength=9) / hidden.sum()
    assert share[[3, 5, 6, 8]].sub(0.25).abs().max() < 0.02 and share[[4, 7]].sum() == 0
    wide, more = torch.nn.functional.pad(hidden, (5, 0)), torch.nn.functional.pad(ids, (5, 0))
    assert torch.equal(random_corruption(wide, more, space, generator=keyed_generator("a"))[..., 5:], noisy)


def test_a_window_keeps_its_noise(tmp_path):
    """Corrupted ids differ from the answer at hidden positions alone; prompt tokens are hidden by noise as well."""
    trainer = make(uniform_noise, tmp_path, p_mask_prompt=0.5, num_noise_samples=2)
    rows, prompt_tokens = first_window(trainer).experiences, 0
    for row in rows:
        assert row.input_ids.shape == row.hidden.shape == (2, 2, len(row.ids))
        shown = row.ids.expand_as(row.input_ids)
        assert torch.equal(row.input_ids[~row.hidden], shown[~row.hidden])
        assert row.token_space.contains(row.input_ids[row.hidden]).all()
        assert not (row.target & ~row.fill_mask).any()
        prompt_tokens += int(((row.input_ids != shown) & ~row.fill_mask).sum())
    assert prompt_tokens > len(rows)
    again = first_window(make(uniform_noise, tmp_path, p_mask_prompt=0.5, num_noise_samples=2)).experiences
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(rows, again, strict=True))


def test_scores_need_the_noise():
    model, policy, _ = uniform_noise()
    canvas = encoded(policy)
    with pytest.raises(ValueError, match=r"UniformNoisePolicy has no mask id.*give noisy_ids"):
        score_tokens(model, policy, replace(canvas, ids=canvas.ids.clamp(min=1)), canvas.fill_mask, canvas.fill_mask)


class Guided(UniformNoisePolicy):
    """Its unconditional twin keeps the opening token of the prompt."""

    def guidance_canvas(self, canvas):
        opening = canvas.attention_mask.cumsum(1) == 1
        return replace(canvas, attention_mask=canvas.fill_mask | opening)


def test_guidance_needs_a_twin_of_the_familys_own():
    model, policy, rows = uniform_noise()
    canvas, sampler = encoded(policy), SemiAutoregressive(steps=2, block_length=8, guidance_scale=1.5, stop="never")
    with pytest.raises(
        ValueError, match=r"no mask id to hide a prompt with: set guidance_scale=0, or let its guidance_"
    ):
        sampler(model, policy, canvas, generators=streams(len(rows)))
    policy = Guided(model.config, policy.processor)
    rollout = sampler(model, policy, canvas, generators=streams(len(rows)))
    noise = CanvasWriter(canvas, policy, 0.0, streams(len(rows))).ids
    for step in range(2):
        hidden, target = canvas.fill_mask & (rollout.step_map >= step), rollout.step_map == step
        noisy = torch.where(hidden, noise, rollout.canvas.ids)
        logps = score_tokens(model, policy, rollout.canvas, hidden, target, noisy, guidance_scale=1.5).logps
        assert (logps - rollout.sampling_logps)[target].abs().max() < 2e-5
