"""Which tokens are committed first: Dream's orders and schedule, and LLaDA's two ways to keep an answer from ending early."""

from __future__ import annotations

import pytest
import torch

from unigrpo.models.draw import Draw
from unigrpo.samplers import Dream, SemiAutoregressive
from unigrpo.types import keyed_generator

from ..support.tiny import prompts
from ..support.tiny_decoders import tiny_decoder


def written(sampler, rows: int = 3, length: int = 12, **fields):
    model, policy = tiny_decoder("dream", **fields)
    canvas = policy.encode(prompts(1) * rows, max_completion_length=length)
    streams = [keyed_generator("orders", row) for row in range(rows)]
    return model, policy, canvas, sampler(model, policy, canvas, generators=streams)


def table(model, policy, canvas) -> torch.Tensor:
    """Log-probabilities ``[B, n, W]`` of the holes of an empty canvas."""
    space = canvas.token_space
    logits = model(**policy.inputs(canvas), select=policy.rows(canvas.fill_mask), token_space=space).logits
    return logits.double().log_softmax(-1).unflatten(0, (len(canvas.ids), -1))


def ranked(logprobs: torch.Tensor, alg: str) -> torch.Tensor:
    """What Dream ranks holes by, from its paper's words."""
    probs = logprobs.exp()
    best = probs.topk(2, dim=-1).values
    entropy = -(probs * logprobs.clamp(min=-1e4)).sum(-1)
    return {"maskgit_plus": best[..., 0], "topk_margin": best[..., 0] - best[..., 1], "entropy": -entropy}[alg]


@pytest.mark.smoke
@torch.no_grad()
@pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy"])
def test_the_first_hole_is_the_best_and_the_schedule_is_dreams(alg):
    model, policy, canvas, rollout = written(Dream(steps=7, alg=alg, temperature=0.0, stop="never"))
    ranks = ranked(table(model, policy, canvas), alg)
    steps = rollout.step_map[canvas.fill_mask].view(3, -1)
    held, times = 12, torch.linspace(1, 1e-3, 8)
    for step in range(7):
        count = int(held * (1 - times[step + 1] / times[step])) if step < 6 else held
        assert (steps == step).sum(dim=1).tolist() == [count] * 3
        held -= count
    assert torch.equal((steps == 0).float().argmax(dim=1), ranks.argmax(dim=1))


@torch.no_grad()
def test_alg_temp_draws_holes_from_the_softmax_of_what_ranks_them():
    rows, heat = 1500, 0.2
    sampler = Dream(steps=2, alg="topk_margin", alg_temp=heat, temperature=0.0)
    model, policy, canvas, rollout = written(sampler, rows, 3, initializer_range=0.6)
    chances = (ranked(table(model, policy, canvas.take(torch.tensor([0]))), "topk_margin")[0] / heat).softmax(-1)
    first = (rollout.step_map[canvas.fill_mask].view(rows, 3) == 0).double().mean(dim=0)
    assert float((first - chances).abs().max()) < 5 * (0.25 / rows) ** 0.5
    assert float(chances.max() - chances.min()) > 0.1, "another law would pass"


@torch.no_grad()
def test_by_chance_every_hole_is_as_likely_as_the_other():
    rows, length = 1500, 4
    _, _, canvas, rollout = written(Dream(steps=4, alg="origin", temperature=0.0, stop="never"), rows, length)
    steps = rollout.step_map[canvas.fill_mask].view(rows, length)
    share = 1 - float(torch.linspace(1, 1e-3, 5)[1])
    first = (steps == 0).double().mean(dim=0)
    assert float((first - share).abs().max()) < 5 * (share * (1 - share) / rows) ** 0.5


@torch.no_grad()
def test_the_margin_of_a_draw_is_the_lead_over_the_second_token():
    model, policy, canvas, _ = written(Dream(steps=1))
    asked = {"select": policy.rows(canvas.fill_mask), "token_space": canvas.token_space}
    found = model(**policy.inputs(canvas), **asked, draw=Draw(margin=True)).margin
    expected = ranked(table(model, policy, canvas), "topk_margin").flatten().float()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def answers(**options):
    """Of a policy with 19 words and its stop tokens."""
    settings = {"steps": 12, "block_length": 6, "temperature": 3.0, "stop": "never", **options}
    _, policy, canvas, rollout = written(SemiAutoregressive(**settings), 40, forbidden_token_ids=list(range(128)))
    return policy, canvas, rollout, rollout.canvas.ids[canvas.fill_mask].view(40, -1)


def test_logits_eos_inf_never_ends_the_text_and_leaves_the_likelihood_its_law():
    policy, canvas, rollout, ids = answers(logits_eos_inf=True)
    end, turn = policy.stop_token_ids
    assert not bool((ids == end).any()) and bool((ids == turn).any())
    assert bool((answers()[3] == end).any())
    assert rollout.canvas.token_space == canvas.token_space


def test_confidence_eos_eot_inf_commits_stop_tokens_last_in_their_block():
    def last(**options) -> float:
        """The share of blocks with stop tokens and others where those come after these."""
        policy, canvas, rollout, ids = answers(**options)
        steps = rollout.step_map[canvas.fill_mask].view(-1, 6)
        ends = torch.isin(ids, torch.tensor(policy.stop_token_ids)).view(-1, 6)
        mixed = [(steps[row], own) for row, own in enumerate(ends) if own.any() and not own.all()]
        assert len(mixed) > 5
        return sum(bool(order[own].min() > order[~own].max()) for order, own in mixed) / len(mixed)

    assert last(confidence_eos_eot_inf=True) > 0.85 > 0.5 > last()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alg": "margin"}, "alg='margin'"),
        ({"alg": "origin", "alg_temp": 1.0}, "which ranks nothing"),
        ({"stop": "block_end"}, "no blocks"),
    ],
)
def test_what_dreams_sampler_cannot_do_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Dream(**options)
