"""Presets against the authors' public code: losses, gradients, training rows and advantages recorded from it."""

from __future__ import annotations

import pytest
import torch

from unigrpo.algorithm.advantages import EPSILON, group_advantages
from unigrpo.algorithm.noising import FullNoising, TrajectoryNoising
from unigrpo.algorithm.noising.ordered import merged_steps
from unigrpo.config.arguments import UniGRPOConfig
from unigrpo.config.build import build_algorithm
from unigrpo.types import Canvas, Rollout, TokenSpace

from ..support.records import terms_of
from ..support.tiny import golden
from ..support.tolerances import assert_rounding


pytestmark = [pytest.mark.filterwarnings("ignore:algorithm .* does not read what was set"), pytest.mark.golden]


ARRAYS, ABOUT = golden("g7_rl")
IDS = ABOUT["ids"]
TRACE = ABOUT["trace"]
START = IDS["P"]


def loss_of(algorithm: str, **changes):
    args = UniGRPOConfig("unused", use_cpu=True, report_to="none", algorithm=algorithm, **changes)
    return build_algorithm(args, "text").loss


def rollout(ids, completion, step_map=None) -> Rollout:
    """``ids`` ``[B, L]`` as filled canvases; ``completion`` ``[B, L]`` are the tokens that count."""
    fill = torch.zeros_like(completion)
    fill[:, START:] = True
    steps = torch.full_like(ids, -1)
    if step_map is not None:
        steps[:, START:] = step_map
    canvas = Canvas(
        ids=ids,
        fill_mask=fill,
        attention_mask=torch.ones_like(fill),
        task="text",
        token_space=TokenSpace(start=0, stop=IDS["V"]),
    )
    return Rollout(
        canvas=canvas,
        completion_mask=completion,
        step_map=steps,
        sampling_logps=torch.zeros(ids.shape),
        completions=[""] * len(ids),
    )


def everywhere(batch: int) -> torch.Tensor:
    """All written positions count."""
    mask = torch.zeros(batch, START + IDS["C"], dtype=torch.bool)
    mask[:, START:] = True
    return mask


def new_logps():
    """Log-probabilities of the golden batch in float64, and the logits they are differentiable in."""
    logits = ARRAYS["x.logits"].double().requires_grad_()
    return logits.log_softmax(-1).gather(-1, ARRAYS["x.ids"][..., None]).squeeze(-1), logits


def evaluate(loss, target, old, ref, advantages=None, **given):
    logps, logits = new_logps()
    advantages = ARRAYS["x.adv"].double() if advantages is None else advantages
    old = logps.detach() if old is None else ARRAYS[old].double()
    lengths = target.sum(dim=1).double()
    reference = None if ref is None else ARRAYS[ref].double()
    terms = terms_of(loss, logps, old, reference, advantages, target, target.double(), lengths, **given)
    return terms, logits


# ---- d1: the answer wholly hidden, the mean over all tokens of the batch ----


@pytest.mark.smoke
@pytest.mark.parametrize("case", ["mu1_kl", "mu2_kl", "mu2_nokl"])
def test_d1_loss_and_gradient(case):
    """diffu_grpo with the golden's clip range; with one update the old policy is the new one.

    Its clip ratio counts tokens whose ratio lies outside where the clip does not act, so it is not compared.
    """
    about = ABOUT[f"d1.{case}"]
    target = torch.zeros(IDS["B"], START + IDS["C"], dtype=torch.bool)
    target[:, START:] = ARRAYS["d1.completion_mask"].bool()
    loss = loss_of("diffu_grpo", epsilon=about["epsilon"], beta=about["beta"])
    old = None if about["num_iterations"] == 1 else "x.old_logp"
    tokens_per_row = float(target.sum()) / len(target)
    terms, logits = evaluate(loss, target, old, "x.ref_logp", tokens_per_row=tokens_per_row)
    total = terms.losses.mean()
    total.backward()
    assert total.item() == pytest.approx(about["loss"], abs=1e-5)
    assert (logits.grad[:, START:] - ARRAYS[f"d1.{case}.grad_logits"]).abs().max() < 1e-5
    assert logits.grad[:, :START].abs().max() == 0
    if about["beta"]:
        mean_kl = float((terms.kl * target.sum(dim=1)).sum() / target.sum())
        assert mean_kl == pytest.approx(about["metrics"]["kl"][0], abs=1e-5)


def test_d1_noising_hides_every_completion_position_and_only_prompts_besides():
    """The golden's noisy ids are its ids under a mask that our law admits; ours has the same structure."""
    completion = torch.zeros(IDS["B"], START + IDS["C"], dtype=torch.bool)
    completion[:, START:] = ARRAYS["d1.completion_mask"].bool()
    drawn = FullNoising(p_mask_prompt=0.15)(
        rollout(ARRAYS["x.ids"], completion), num_iterations=1, num_samples=1, key=(0, 0), rows=list(range(IDS["B"]))
    )
    hidden = drawn.hidden[:, 0, 0]
    theirs = ARRAYS["d1.forward_process.noisy"] == IDS["mask_id"]
    assert torch.equal(hidden[:, START:], theirs[:, START:])
    assert torch.equal(drawn.target[:, 0, 0], completion)
    noisy = torch.where(theirs, IDS["mask_id"], ARRAYS["x.ids"])
    assert torch.equal(noisy, ARRAYS["d1.forward_process.noisy"])


# ---- dLLM-RL: a mean over a row's masked tokens, a KL to the old policy ----

DLLM = ("k3", "k1", "nokl", "tight")


def dllm_terms(case: str, preset: str):
    """``(policy, kl)``, each ``(value, gradient of the completion)``, of a preset's loss on the golden batch.

    The KL of that code is a sum over a row's masked tokens, ours a mean: it is brought there by their number.
    """
    about, target = ABOUT[f"dllm.{case}"], ARRAYS["x.p_mask"].bool()
    estimator = "k3" if about["k3"] else "k1"
    options = {"epsilon": about["eps"], "kl_estimator": estimator, "kl_reference": "old", "reduce": "per_draw"}
    policy, logits = evaluate(loss_of(preset, beta=0.0, **options), target, "x.old_logp", None)
    policy.losses.mean().backward()
    nothing = torch.zeros(len(target), dtype=torch.float64)
    kl, kl_logits = evaluate(loss_of(preset, beta=1.0, **options), target, "x.old_logp", "x.old_logp", nothing)
    summed = (kl.losses * target.sum(dim=1)).mean()
    summed.backward()
    return ((policy.losses.mean().item(), logits.grad[:, START:]), (summed.item(), kl_logits.grad[:, START:]))


@pytest.mark.parametrize("preset", ["random_masking", "trace_rl"])
@pytest.mark.parametrize("case", DLLM)
def test_dllm_loss_and_gradient(case, preset):
    policy, kl = dllm_terms(case, preset)
    about = ABOUT[f"dllm.{case}"]
    assert policy[0] + about["beta"] * kl[0] == pytest.approx(about["loss"], abs=1e-5)
    gradient = policy[1] + about["beta"] * kl[1]
    assert (gradient - ARRAYS[f"dllm.{case}.grad_logits"]).abs().max() < 1e-5


# ---- dLLM-RL: rows of training data ----


def kept(clean: torch.Tensor) -> torch.Tensor:
    """Tokens that count: all but the prompt and the padding behind the first pad."""
    mask = torch.zeros_like(clean, dtype=torch.bool)
    for row, ids in enumerate(clean.tolist()):
        length = len(ids)
        while length > START and ids[length - 1] == TRACE["pad_id"]:
            length -= 1
        mask[row, START : min(length + TRACE["post_num"], len(ids))] = True
    return mask


@pytest.mark.parametrize(("place", "merge"), list(enumerate([1, 2, 3, 4, 8])))
def test_merged_steps_are_the_published_ones(place, merge):
    """That code names a merged stage by its last step, ours by its rank: the groups and their order are the same."""
    steps = ARRAYS["trace.step_map"]
    stage = merged_steps(steps, merge)
    last = torch.stack([steps[stage == own].max() for own in stage])
    assert torch.equal(last, ARRAYS["trace.collapse"][place])
    assert sorted(stage.unique().tolist()) == list(range(-(-len(steps.unique()) // merge)))


def trace_draws(completion):
    steps = ARRAYS["trace.step_map"]
    noising = TrajectoryNoising(trajectory_shrink=TRACE["shrink"])
    return noising(
        rollout(ARRAYS["trace.clean"], completion, torch.stack([steps, steps.flip(0), steps])),
        num_iterations=1,
        num_samples=0,
        key=(0, 0),
        rows=[0, 1, 2],
    )


def test_trace_rows_are_the_published_ones():
    """With every position read as written, hidden tokens are theirs; targets are theirs where padding is left out."""
    clean, keep = ARRAYS["trace.clean"], kept(ARRAYS["trace.clean"])
    noise = trace_draws(everywhere(3))
    rows = []
    for b in range(3):
        for s in range(noise.hidden.shape[2]):
            target = noise.target[b, 0, s] & keep[b]
            if bool(target.any()):
                noisy = torch.where(noise.hidden[b, 0, s], TRACE["mask_id"], clean[b])
                rows.append((TRACE["rewards"][b], noisy.tolist(), target.int().tolist(), clean[b].tolist()))
    names = ("reward", "noisy", "p_mask", "labels")
    theirs = list(zip(*(ARRAYS[f"trace.TraceRL.{name}"].tolist() for name in names), strict=True))
    assert len(theirs) == 11
    assert sorted(rows) == sorted(theirs)


def test_trace_rows_of_an_answer_without_a_tail_are_the_published_ones_as_drawn():
    noise = trace_draws(kept(ARRAYS["trace.clean"]))
    hidden = [noise.hidden[0, 0, s].tolist() for s in range(4)]
    theirs = ARRAYS["trace.TraceRL.noisy"][:4] == TRACE["mask_id"]
    assert hidden == theirs.tolist()
    assert noise.target[0, 0, :4].tolist() == ARRAYS["trace.TraceRL.p_mask"][:4].bool().tolist()


def test_trace_rows_of_a_shorter_answer_count_its_own_steps_and_hide_its_tail_until_it_ends():
    """Steps 8 9 6 4 4 5 2 7 of eight tokens, three at a time: 2 4 5, then 6 7 8, then 9. Step 7 wrote the last token; from
    then on the tail was padding.
    """
    noise = trace_draws(kept(ARRAYS["trace.clean"]))
    answer = slice(START, START + 8)
    assert ARRAYS["trace.step_map"].flip(0).tolist()[:8] == [8, 9, 6, 4, 4, 5, 2, 7]
    targets = [[0, 0, 0, 1, 1, 1, 1, 0], [1, 0, 1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0, 0, 0]]
    later = [[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert noise.target[1, 0, :3, answer].int().tolist() == targets
    assert noise.hidden[1, 0, :3, answer].int().tolist() == later
    assert bool(noise.hidden[1, 0, :2, START + 8 :].all())
    assert not bool(noise.hidden[1, 0, 2, START + 8 :].any())
    assert not bool(noise.target[1, 0, :, START + 8 :].any())
    assert not bool(noise.target[1, 0, 3:].any())


# ---- advantages ----


def test_population_scores_are_the_published_ones_up_to_the_number_added_to_the_std():
    """z = (r - mean) / std there, / (std + 1e-4) here: smaller by the factor std / (std + 1e-4), never by more."""
    scores, expected = ARRAYS["adv.dllm_zscore_in"], ARRAYS["adv.dllm_zscore"]
    result = group_advantages(
        scores.reshape(-1, 1), torch.ones(1, dtype=torch.float64), scores.shape[1], "group_population"
    )
    std = scores.std(dim=1, correction=0, keepdim=True)
    shrunk = expected * std / (std + EPSILON)
    assert_rounding(result.values.view_as(scores), shrunk, relative=1e-9)
    assert (result.values.view_as(scores) - expected).abs().max() < EPSILON / 0.4 * 1.5
    assert expected.std(dim=1, correction=0).tolist() == pytest.approx([1.0, 0.0, 1.0])
