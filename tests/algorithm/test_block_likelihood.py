"""Likelihoods of a block-causal model against enumeration: five ids, answers of four tokens in blocks of two."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.samplers import LeftToRight, SemiAutoregressive
from unigrpo.toy import exact
from unigrpo.toy.exact import ExactLikelihood
from unigrpo.training.setup import check_policy_keys
from unigrpo.types import Canvas, Rollout, TokenSpace, keyed_generator

from ..support.tiny import prompts
from ..support.tiny_decoders import tiny_decoder
from .test_estimators import algorithm_of, compare, evaluate, timestep_counts


BLOCK, N = 2, 4
SPACE = TokenSpace(start=10, stop=15)


@cache
def loaded(anchor: str = "prompt_end") -> tuple:
    return tiny_decoder("blocks", block_size=BLOCK, block_anchor=anchor)


def empty_canvas(rows: int = 1, anchor: str = "prompt_end") -> Canvas:
    """A prompt, of an odd number of tokens where blocks begin with it, and four holes."""
    _, policy = loaded(anchor)
    canvas = replace(policy.encode(prompts(1), max_completion_length=N), token_space=SPACE)
    assert anchor == "prompt_end" or int((~canvas.fill_mask).sum()) % BLOCK == 1
    return canvas.take(torch.zeros(rows, dtype=torch.int64))


def written(ids: Tensor, steps: Tensor, anchor: str = "prompt_end") -> Rollout:
    """Answers ``ids [B, N]``, each of whose tokens was written in a step of ``steps [B, N]``."""
    canvas = empty_canvas(len(ids), anchor)
    fill = canvas.fill_mask
    return Rollout(
        canvas=replace(canvas, ids=canvas.ids.masked_scatter(fill, ids)),
        completion_mask=fill,
        step_map=torch.full_like(canvas.ids, -1).masked_scatter(fill, steps),
        sampling_logps=torch.zeros(fill.shape),
        completions=[""] * len(ids),
    )


EVERY = torch.tensor(list(itertools.product(range(SPACE.start, SPACE.stop), repeat=N)))
"""All 625 answers."""


def scored(rollout: Rollout, hidden: Tensor, target: Tensor, anchor: str = "prompt_end") -> Tensor:
    """log p ``[B, S, L]`` under ``hidden [B, S, L]`` at ``target``, all in one forward."""
    draws = hidden.shape[1]
    canvas = rollout.canvas.take(torch.arange(len(hidden)).repeat_interleave(draws))
    with torch.no_grad():
        logps = score_tokens(*loaded(anchor), canvas, hidden.flatten(0, 1), target.flatten(0, 1)).logps
    return logps.view(hidden.shape)


def noise_of(name: str, rollout: Rollout, anchor: str = "prompt_end", rows: list[int] | None = None, **options):
    """The noise that a preset draws for its first update."""
    algorithm, policy = algorithm_of(name, **options), loaded(anchor)[1]
    rows = list(range(len(rollout.canvas.ids))) if rows is None else rows
    law = {"num_iterations": 1, "num_samples": algorithm.settings.num_noise_samples, "key": (0, 0)}
    return algorithm.noising(rollout, **law, rows=rows, blocks=policy.blocks(rollout.canvas))


PRESETS = {"dipo": {}, "trace_rl": {"trajectory_shrink": 1}, "just_grpo": {}}


@pytest.mark.smoke
@pytest.mark.parametrize("anchor", ["prompt_end", "start"])
@pytest.mark.parametrize("name", PRESETS)
def test_probabilities_of_all_answers_add_up_to_one(name, anchor):
    """Written from the left; where blocks begin with the prompt, its last one is half answer, and there are three."""
    rollout = written(EVERY, torch.arange(N).expand_as(EVERY), anchor)
    noise = noise_of(name, rollout, anchor, **PRESETS[name])
    assert noise.hidden.shape[2] == BLOCK
    logps = scored(rollout, noise.hidden[:, 0], noise.target[:, 0], anchor).double()
    assert torch.equal(noise.target[:, 0].sum(dim=1) == 1, rollout.canvas.fill_mask)
    total = logps.sum(dim=(1, 2))
    assert float(total.exp().sum()) == pytest.approx(1, abs=2e-5)
    assert float(total.std()) > 1


def test_a_random_order_in_each_block_has_a_likelihood():
    """The mean over orders of a block, behind the finished ones; of all answers together 1."""
    rollout, masks = written(EVERY, torch.zeros_like(EVERY)), exact.all_masks(BLOCK)
    fill = rollout.canvas.fill_mask
    both = torch.zeros(len(EVERY), len(masks), fill.shape[1], dtype=torch.bool)
    both[:, :, -N:] = masks.repeat(1, N // BLOCK)
    logps = scored(rollout, both, both)[:, :, -N:].unflatten(2, (-1, BLOCK)).double()
    likelihoods = [
        sum(ExactLikelihood(own[:, block]).log_likelihood() for block in range(N // BLOCK)) for own in logps.unbind()
    ]
    assert sum(math.exp(own) for own in likelihoods) == pytest.approx(1, abs=2e-5)


SAMPLERS = {
    "left to right": (LeftToRight(temperature=1.0), ("prompt_end", "start")),
    "blocks": (SemiAutoregressive(steps=N, block_length=BLOCK, temperature=1.0), ("prompt_end",)),
    "two at once": (SemiAutoregressive(steps=3, block_length=BLOCK, temperature=1.0), ("prompt_end",)),
}


@pytest.mark.parametrize(("sampler", "anchor"), [(name, own) for name, (_, all_) in SAMPLERS.items() for own in all_])
@pytest.mark.parametrize("name", ["dipo", "trace_rl"])
def test_a_trajectory_is_scored_as_it_was_sampled(name, sampler, anchor):
    """The preset's own estimate, in two draws, is what the sampler recorded; orders differ."""
    model, policy = loaded(anchor)
    rollout = SAMPLERS[sampler][0](
        model, policy, empty_canvas(24, anchor), generators=[keyed_generator("blocks", row) for row in range(24)]
    )
    noise = noise_of(name, rollout, anchor, **PRESETS[name])
    assert noise.hidden.shape[2] == BLOCK
    target = noise.target[:, 0]
    logps = torch.where(target, scored(rollout, noise.hidden[:, 0], target, anchor), 0.0).sum(dim=1)
    assert (logps - rollout.sampling_logps).abs().max() < 1e-6 * rollout.sampling_logps.abs().max()
    orders = {tuple(own.tolist()) for own in rollout.step_map[:, -N:]}
    assert len(orders) == {"left to right": 1, "blocks": 4, "two at once": 2}[sampler]


# ---- UniGRPO ----


@dataclass(frozen=True)
class Known:
    """One answer as the estimators of ``test_estimators`` take it, with the table of all its masks."""

    rollout: Rollout
    exact: ExactLikelihood
    n: int = N

    def scores(self, hidden: Tensor) -> Tensor:
        own = self.exact.table[exact.mask_numbers(hidden[..., -N:])]
        return torch.nn.functional.pad(own, (hidden.shape[-1] - N, 0))


@cache
def known() -> Known:
    rollout = written(EVERY[317:318], torch.arange(N)[None])
    masks = torch.nn.functional.pad(exact.all_masks(N), (rollout.canvas.ids.shape[1] - N, 0))[None]
    return Known(rollout, ExactLikelihood(scored(rollout, masks, masks)[0, :, -N:].double()))


def test_a_block_is_scored_behind_finished_ones():
    """What is hidden of another block changes no score."""
    table, masks = known().exact.table, exact.all_masks(N)
    for token in range(N):
        own = slice(token // BLOCK * BLOCK, token // BLOCK * BLOCK + BLOCK)
        for mask in masks[masks[:, token]]:
            alone = torch.zeros(N, dtype=torch.bool)
            alone[own] = mask[own]
            here, there = (float(table[exact.mask_numbers(hidden), token]) for hidden in (mask, alone))
            assert here == pytest.approx(there, abs=1e-6)


def per_block() -> Tensor:
    """Each block hides round(2 t / T), at least one, with t of its own; all hidden tokens of the answer count alike."""
    masks, counts = exact.all_masks(N), timestep_counts(BLOCK)
    sizes = masks.unflatten(1, (-1, BLOCK)).sum(dim=2)
    chances = [math.prod(counts[size] / math.comb(BLOCK, size) for size in own) for own in sizes.tolist()]
    return exact.mean_over_hidden(torch.tensor(chances, dtype=torch.float64)[:, None] * masks)


def per_answer() -> Tensor:
    return sum(chance * exact.of_size(N, size, 1 / size) for size, chance in enumerate(timestep_counts(N)) if size)


@pytest.mark.parametrize(("noise_per", "law"), [("block", per_block), ("answer", per_answer)])
def test_unigrpo_estimates_what_it_defines(noise_per, law):
    """On the model, and on a made-up one for which the number of hidden tokens decides everything."""
    answer, count, masks = known(), 600, exact.all_masks(N)
    copies = answer.rollout.take(torch.zeros(count, dtype=torch.int64))
    noise, algorithm = noise_of("unigrpo", copies, noise_per=noise_per), algorithm_of("unigrpo", noise_per=noise_per)
    steep = replace(answer, exact=ExactLikelihood(-(masks.sum(dim=1, keepdim=True) ** 2.0) * masks))
    for own in (answer, steep):
        compare(f"unigrpo per {noise_per}", evaluate(algorithm, own, noise), own.exact.expect(law()))
    assert abs(steep.exact.expect(per_block()) - steep.exact.expect(per_answer())) > 1


def test_noise_per_block_needs_blocks():
    algorithms = {"mmu": algorithm_of("unigrpo"), "thought": algorithm_of("unigrpo")}
    algorithms["text"] = algorithm_of("unigrpo", noise_per="block")
    check_policy_keys(algorithms, loaded()[1])
    with pytest.raises(ValueError, match="noise_per='block': the attention of A2DQwen3Policy is not in blocks"):
        check_policy_keys(algorithms, tiny_decoder("a2d-qwen3")[1])
    with pytest.raises(ValueError, match="noise_per='block' with noising 'ramp'"):
        algorithm_of("mask_grpo", noise_per="block")
