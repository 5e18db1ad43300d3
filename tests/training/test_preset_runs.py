"""Every preset in the training loop: it runs, starts on-policy, and does not depend on how its rows are cut."""

from __future__ import annotations

import math

import pytest
import torch

from unigrpo.config.build import Algorithm
from unigrpo.config.presets import PRESETS
from unigrpo.training.batches import collate
from unigrpo.training.window import rebuild_window

from ..support.images import assert_on_policy, options
from ..support.laws import aligned, calls_of, difference, first_window, total_and_gradient, weights
from ..support.presets import preset
from ..support.runs import history
from ..support.tiny import prompts
from ..support.tolerances import assert_rounding


SHORT = {"max_completion_length": 8, "block_length": 4}

IMAGES = ["unigrpo", "wd1", "coupled_grpo", "spg", "espo", "gdpo", "mask_grpo", "dipo"]
"""One of each noising but left to right, an order of text; ``config/test_presets`` has the losses of all on pictures."""


def assert_trains(trainer, steps: int) -> None:
    start = weights(trainer.model)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    norms = [log["grad_norm"] for log in trainer.state.log_history if "grad_norm" in log]
    assert len(losses) == len(norms) == steps
    assert all(math.isfinite(value) for value in (*losses, *norms))
    assert max(norms) > 0
    moved = weights(trainer.model)
    assert any(not torch.equal(start[name], value) for name, value in moved.items())
    assert all(bool(value.isfinite().all()) for value in moved.values())


# ---- runs ----


@pytest.mark.smoke
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_on_text(make_trainer, name):
    """With two updates the third optimizer step is off-policy."""
    sizes = {"gradient_accumulation_steps": 1, "steps_per_generation": 2, "num_generations": 2, "max_steps": 3}
    assert_trains(make_trainer(per_device_train_batch_size=2, **preset(name, **sizes, **SHORT)), 3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "t2i") for name in IMAGES), ("coupled_grpo", "mmu"), ("just_grpo", "mmu")],
)
def test_a_preset_trains_on_images(make_trainer, name, kind):
    sizes = {"steps_per_generation": 2, "num_generations": 2, "per_device_train_batch_size": 2, "max_steps": 2}
    assert_trains(make_trainer(**options(kind, 2, **preset(name, **sizes))), 2)


# ---- on-policy ----


@pytest.mark.parametrize("name", PRESETS)
def test_the_first_update_has_ratio_one_and_kl_zero(make_trainer, name):
    sizes = {"steps_per_generation": 2, "num_generations": 2, **SHORT}
    trainer = make_trainer(model=aligned(), **preset(name, **sizes))
    assert_on_policy(trainer, first_window(trainer))


@pytest.mark.parametrize("name", ["coupled_grpo", "trace_rl", "mask_grpo"])
def test_the_first_update_on_images_has_ratio_one_and_kl_zero(make_trainer, name):
    trainer = make_trainer(model=aligned(), **options("t2i", 4, **preset(name)))
    assert_on_policy(trainer, first_window(trainer))


@pytest.mark.parametrize("name", ["wd1", "spg", "gdpo", "bgpo", "trace_rl"])
def test_an_old_pass_is_run_where_a_ratio_or_a_kl_to_the_old_policy_reads_it(make_trainer, name):
    """None of these loads a reference model; at the second step of a window the policy has moved."""
    trainer = make_trainer(**preset(name, max_steps=2))
    calls = calls_of(trainer)
    trainer.train()
    assert calls.count("update") > 0 and calls.count("reference") == 0 and trainer._twin is None
    assert (calls.count("score") == 0) == (name in ("wd1", "spg"))


# ---- how rows are cut ----


@pytest.mark.parametrize("name", ["coupled_grpo", "spg", "espo", "just_grpo", "dipo"])
def test_order_of_rows_changes_nothing(make_trainer, name):
    trainer = make_trainer(
        **preset(name, rows=prompts(8, (2, 70, 5)), steps_per_generation=2, num_generations=2, **SHORT)
    )
    window = first_window(trainer)
    total, gradient = total_and_gradient(trainer, window)
    assert max(value.abs().max().item() for value in gradient.values()) > 0
    other = rebuild_window(trainer.pipeline(), window.experiences, [7, 3, 0, 5, 1, 6, 2, 4])
    assert other.micro_batches != window.micro_batches
    other_total, other_gradient = total_and_gradient(trainer, other)
    assert other_total == pytest.approx(total, abs=1e-6, rel=1e-6)
    assert difference(gradient, other_gradient) < 1e-5


ACCUMULATED = {"coupled_grpo": {"loss_type": "dapo"}, "spg": {}, "mask_grpo": {}, "just_grpo": {"loss_type": "dapo"}}


@pytest.mark.parametrize("name", ACCUMULATED)
def test_accumulation_changes_nothing(make_trainer, name):
    """The same eight answers in one, or two micro-batches of one optimizer step."""
    results = []
    for accumulation in (1, 2):
        trainer = make_trainer(
            **preset(name, **ACCUMULATED[name]),
            model=aligned(),
            rows=prompts(4, (2, 70, 5)),
            num_generations=2,
            **SHORT,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=accumulation,
        )
        window = first_window(trainer)
        assert len(window.micro_batches) == accumulation
        results.append(total_and_gradient(trainer, window))
    (total, gradient), (other_total, other_gradient) = results
    assert other_total == pytest.approx(total, abs=1e-6, rel=1e-6)
    assert difference(gradient, other_gradient) < 1e-5


def test_a_mean_over_the_micro_batch_is_not_that_of_the_step(make_trainer):
    """``bnpo`` is the one whose weights depend on the cut; otherwise the law above could not fail."""
    totals = []
    for accumulation in (1, 4):
        trainer = make_trainer(
            **preset("mask_grpo", loss_type="bnpo", beta=0.0),
            rows=prompts(4, (2, 70, 5)),
            num_generations=2,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=accumulation,
        )
        window = first_window(trainer)
        for row in window.experiences:
            # Rows of different numbers of scored tokens: a third loses those before its fifth.
            if row.index % 3 == 0:
                row.target[:, :, : int(row.completion_mask.nonzero()[4])] = False
                row.weight *= row.target
        window = rebuild_window(trainer.pipeline(), window.experiences, window.order)
        totals.append(total_and_gradient(trainer, window)[0])
    assert totals[0] != pytest.approx(totals[1], rel=1e-3)


@pytest.mark.parametrize("name", ["just_grpo", "dipo"])
def test_draws_that_share_no_token_may_run_apart(make_trainer, name, monkeypatch):
    """One forward with all draws of a row, or one a draw: the same loss and gradient."""
    trainer = make_trainer(**preset(name), model=aligned(), rows=prompts(4), steps_per_generation=2, num_generations=2)
    window = first_window(trainer)
    assert all(unit.draw is not None for units in window.micro_batches for unit in units)
    split = total_and_gradient(trainer, window)
    monkeypatch.setattr(Algorithm, "tokenwise", property(lambda self: False))
    joint = rebuild_window(trainer.pipeline(), window.experiences, window.order)
    assert all(unit.draw is None for units in joint.micro_batches for unit in units)
    other = total_and_gradient(trainer, joint)
    assert other[0] == pytest.approx(split[0], abs=1e-6)
    assert difference(split[1], other[1]) < 1e-5


def test_draws_that_share_tokens_run_together(make_trainer):
    sizes = {"steps_per_generation": 2, "num_generations": 2}
    for name in ("coupled_grpo", "espo", "gdpo", "spg"):
        window = first_window(make_trainer(**preset(name, **sizes)))
        assert all(unit.draw is None for units in window.micro_batches for unit in units), name
    for name in ("random_masking", "bgpo", "trace_rl"):
        window = first_window(make_trainer(**preset(name, **sizes)))
        assert all(unit.draw is not None for units in window.micro_batches for unit in units), name


# ---- resume ----


@pytest.mark.parametrize("name", ["coupled_grpo", "trace_rl"])
def test_resuming_inside_a_window_changes_nothing(make_trainer, tmp_path, name):
    """Two updates of two steps each make a window: checkpoints 1 to 3 lie inside it."""
    arguments = preset(name, rows=prompts(12, (2, 9, 5)), max_steps=5, **SHORT)
    whole = make_trainer(**arguments, save_strategy="steps", save_steps=1)
    whole.train()
    expected, final = history(whole), weights(whole.model)
    assert len(set(expected.values())) == 5
    again = make_trainer(**arguments, output_dir=str(tmp_path / "again"))
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    own = history(again)
    assert all(own[number] == expected[number] for number in (4, 5))
    assert all(torch.equal(value, final[key]) for key, value in weights(again.model).items())


# ---- exact likelihood ----


def test_left_to_right_answers_are_scored_as_they_were_drawn(make_trainer):
    """Each token's training log-probability is the one it was drawn with; so too where a tail follows a stop token."""
    trainer = make_trainer(**preset("just_grpo"))
    # A tenth of all words ends an answer, so that many have a tail.
    trainer.policy.stop_token_ids = tuple(range(16))
    window = first_window(trainer)
    for row in window.experiences:
        row.advantage = 1.0
    window = rebuild_window(trainer.pipeline(), window.experiences, window.order)
    found = [torch.zeros_like(row.sampling_logps) for row in window.experiences]
    with torch.no_grad():
        for unit in (unit for units in window.micro_batches for unit in units):
            batch = collate(window.experiences, unit, 0, trainer.policy, "cpu", True)
            _, outputs = trainer.compute_loss(trainer.model.eval(), batch, return_outputs=True)
            scores = outputs["scores"].logps
            for place, index in enumerate(unit.indices):
                found[index] += scores[place, : len(found[index])]
    tails = 0
    for row, own in zip(window.experiences, found, strict=True):
        assert_rounding(own, row.sampling_logps * row.completion_mask)
        assert bool((own[row.completion_mask] < 0).all())
        tails += bool((row.fill_mask & ~row.completion_mask).any())
    assert tails > 3
    assert {int(row.completion_mask.sum()) for row in window.experiences} > {12}
