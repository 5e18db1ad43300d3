"""Scores of images are made of the codebook's slice alone; what rewards, held-out rows and refills see of pictures."""

from __future__ import annotations

import pytest
import torch

from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.data.pictures import fit_image, to_pixels
from unigrpo.training.evaluation import eval_pipeline
from unigrpo.training.old_and_reference import add_old_and_reference
from unigrpo.training.window import rebuild_window

from ..support.images import GUIDED, assert_on_policy, options, picture, tiny_tokenizer
from ..support.laws import aligned, difference, first_window, losses_of, total_and_gradient
from ..support.tiny import low_ids, tiny_model


@pytest.mark.smoke
def test_images_are_scored_over_the_codebook_alone(make_trainer):
    """log p over the slice = log-softmax over the vocabulary - log of the codebook's mass, guided or not."""
    trainer = make_trainer(**options("t2i"))
    policy, model = trainer.policy, trainer.model.eval()
    canvas = policy.encode([{"prompt": "w3 w4"}, {"prompt": "w7"}], "t2i", image_tokens=16)
    codes = torch.randint(64, (32,), generator=torch.Generator().manual_seed(0))
    canvas.ids[canvas.fill_mask] = codes + policy.config.image_token_offset
    hidden = canvas.fill_mask & (torch.arange(canvas.ids.shape[1]) % 3 > 0)
    space = canvas.token_space
    with torch.no_grad():
        both = policy.guided_inputs(canvas, hidden)
        c, u = model(**both, select=torch.cat([hidden, hidden])).logits.double().chunk(2)
        for scale, logits in ((None, c), (1.5, u + 2.5 * (c - u))):
            full = (logits / 0.8).log_softmax(-1)
            mass = full[:, space.start : space.stop].exp().sum(-1).log()
            expected = full.gather(1, canvas.ids[hidden][:, None]).squeeze(1) - mass
            own = score_tokens(model, policy, canvas, hidden, hidden, None, 0.8, scale).logps[hidden]
            assert mass.max() < -1e-3
            assert (own - expected).abs().max() < 2e-5


@pytest.mark.parametrize(("kind", "inside"), [("t2i", slice(197, 261)), ("mmu", slice(0, 197))])
def test_a_negative_advantage_moves_mass_within_the_space_alone(make_trainer, kind, inside):
    """The head's gradient vanishes outside the task's ids and sums to 0 inside; a step lowers the written tokens."""
    trainer = make_trainer(beta=0.0, model=tiny_model(), **options(kind))
    window = first_window(trainer)
    for row in window.experiences:
        row.advantage = -1.0
    window = rebuild_window(trainer.pipeline(), window.experiences, window.order)
    add_old_and_reference(trainer.pipeline(), window, always_old=True)
    total, gradient = total_and_gradient(trainer, window)
    head = gradient["model.transformer.ff_out.weight"]
    closed = torch.ones(len(head), dtype=torch.bool)
    closed[inside] = False
    assert not head[closed].any()
    assert head[inside].abs().max() > 0
    # Every probability is a share of the space: a gradient on the logits of one position sums to 0 over it.
    assert head[inside].sum(0).abs().max() < 1e-4 * head.abs().max()
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            parameter.sub_(gradient[name], alpha=1e-4)
    terms = [(loss.item(), terms.ratio) for _, loss, terms in losses_of(trainer, window)]
    assert total == pytest.approx(2.0, abs=1e-5)
    assert sum(loss for loss, _ in terms) < 2.0 - 1e-3
    assert torch.cat([ratio for _, ratio in terms]).mean() < 1.0


def test_rewards_see_pictures(make_trainer):
    """Made images arrive as RGB pictures of the run's size, read images as they were, text as text."""
    seen = []

    def watch(prompts, completions, completion_ids, task, images, **_):
        seen.extend(zip(prompts, task, completions, images, strict=True))
        return low_ids(prompts, completions, completion_ids)

    arguments = options("mixed", 8, num_generations=2, image_size=[32, 64])
    pictures = {row["prompt"]: row["image"] for row in arguments["rows"] if "image" in row}
    window = first_window(make_trainer(rewards=watch, **arguments))
    assert sum(task == "mmu" for _, task, *_ in seen) == 2 * len(pictures) == 6
    for prompt, task, completion, images in seen:
        if task == "t2i":
            assert completion.mode == "RGB" and completion.size == (64, 32)
        else:
            assert isinstance(completion, str)
        assert (images is None) == (task != "mmu")
        if images is not None:
            assert [one.tobytes() for one in images] == [pictures[prompt].tobytes()]
    assert [row.task for row in window.experiences] == [task for _, task, *_ in seen]
    assert {int(row.fill_mask.sum()) for row in window.experiences if row.task == "t2i"} == {8}


def test_a_rows_own_transform_wins(make_trainer):
    """Over the task's, which wins over the run's; the canvas holds the codes of the picture so fitted."""
    rows = [
        {"prompt": "w1", "image": picture(0)},
        {"prompt": "w1", "image": picture(1), "image_transform": "crop"},
        {"prompt": "w1", "image": picture(0), "image_transform": None},
        {"prompt": "w1", "image": picture(0), "image_transform": "squash"},
    ]
    overrides = {"mmu": {"image_transform": "pad", "image_size": [32, 64]}}
    trainer = make_trainer(**{**options("mmu"), "rows": rows, "task_overrides": overrides})
    window, expected = first_window(trainer), ("pad", "crop", "pad", "squash")
    offset = trainer.policy.config.image_token_offset
    for row, transform in zip(window.experiences[::4], expected, strict=True):
        source = picture(1) if transform == "crop" else picture(0)
        codes = tiny_tokenizer().encode(to_pixels([fit_image(source, 32, 64, transform)]))[0]
        assert torch.equal(row.ids[row.ids >= offset] - offset, codes)


def test_held_out_images_are_drawn_and_texts_are_greedy(make_trainer):
    """At the tasks' own temperatures, from streams that do not depend on the step."""
    arguments = options("mixed", 5)
    trainer = make_trainer(**arguments, eval_rows=arguments["rows"])
    samplers = {task: own.sampler for task, own in eval_pipeline(trainer.pipeline()).algorithms.items()}
    assert [type(samplers[task]).__name__ for task in ("text", "mmu", "t2i")] == [
        "SemiAutoregressive",
        "SemiAutoregressive",
        "Emerge",
    ]
    assert [samplers[task].temperature for task in ("text", "mmu", "t2i")] == [0.0, 0.0, 1.0]
    one, two = trainer.evaluate(), trainer.evaluate()
    one, two = ({name: own for name, own in found.items() if "time" not in name} for found in (one, two))
    assert one == two
    assert one["eval_num_completion_tokens"] >= 2 * 16 + 3
    assert one["eval_completions/max_length"] <= 12


def images_only(prompts, completions, completion_ids, task, **_):
    """Says nothing about texts."""
    scores = low_ids(prompts, completions, completion_ids)
    return [score if own == "t2i" else 0.5 for score, own in zip(scores, task, strict=True)]


def test_a_refilled_group_may_change_its_task(make_trainer):
    """Equal groups of text and mmu become images; rows stay in their places and the laws hold for the new window."""
    trainer = make_trainer(rewards=images_only, model=aligned(), **options("mixed", 5, refill_rounds=12))
    window = first_window(trainer)
    assert [row.task for row in window.experiences] == ["t2i"] * 16
    assert [row.index for row in window.experiences] == list(range(16))
    assert all(row.advantage != 0.0 for row in window.experiences[4:12])
    assert_on_policy(trainer, window, {"t2i"})


def test_checkpointed_activations_change_nothing(make_trainer):
    """With adapters, the pass that is computed again in the backward is the policy's, not the reference's."""
    results, runs = [], []
    for checkpointing in (False, True):
        trainer = make_trainer(lora=True, gradient_checkpointing=checkpointing, **options("mixed", t2i=GUIDED))
        if checkpointing:
            trainer.model.gradient_checkpointing_enable()
        with torch.no_grad():
            generator = torch.Generator().manual_seed(3)
            for name, parameter in trainer.model.named_parameters():
                if "lora" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        window, calls = first_window(trainer), []
        inner = next(m for name, m in trainer.model.named_modules() if name.endswith("blocks.0.q_proj"))
        inner.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        results.append(total_and_gradient(trainer, window))
        runs.append(len(calls))
    assert runs[1] > runs[0]
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    assert difference(results[0][1], results[1][1]) < 1e-5
