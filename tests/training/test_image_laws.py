"""The training step's laws for images to make, images to read, and runs that mix them with text."""

from __future__ import annotations

import pytest

from unigrpo.training.old_and_reference import add_old_and_reference
from unigrpo.training.window import rebuild_window

from ..support.images import GUIDED, assert_on_policy, image_rows, options
from ..support.laws import (
    aligned,
    assert_accumulation_changes_nothing,
    difference,
    first_window,
    losses_of,
    total_and_gradient,
    trained_adapter,
)


def tasks_of(window) -> set[str]:
    return {row.task for row in window.experiences}


# ---- ratio one, KL zero ----

T2I = {
    "exact": {},
    "k3": {"kl_estimator": "k3"},
    "exact, guided": GUIDED,
    "k3, guided": {"kl_estimator": "k3", **GUIDED},
    "exact, hot": {"temperature": 1.7, **GUIDED},
}


@pytest.mark.parametrize(("policy", "case"), [*(("full", case) for case in T2I), ("lora", "exact, guided")])
def test_images_to_make_start_at_ratio_one_and_kl_zero(make_trainer, policy, case):
    arguments = options("t2i", t2i=T2I[case], num_noise_samples=2)
    trainer = make_trainer(lora=policy == "lora", model=aligned(), **arguments)
    window = first_window(trainer)
    assert {len(row.ids) for row in window.experiences} == {20 + caption + 1 for caption in (2, 70, 5, 9)}
    assert_on_policy(trainer, window, {"t2i"} if case.startswith("exact") else set())


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["mmu", "mixed"])
@pytest.mark.parametrize("policy", ["full", "lora", "trained adapter"])
def test_runs_with_pictures_start_at_ratio_one_and_kl_zero(make_trainer, policy, kind):
    model = trained_adapter() if policy == "trained adapter" else aligned()
    trainer = make_trainer(lora=policy == "lora", model=model, **options(kind, t2i=GUIDED))
    window = first_window(trainer)
    assert tasks_of(window) == ({"mmu"} if kind == "mmu" else {"text", "mmu", "t2i"})
    assert_on_policy(trainer, window, {"t2i"})


def test_more_rows_than_one_chunk_of_the_head_have_kl_zero(make_trainer):
    """The reference's distributions and the policy's come from the same arithmetic, whatever the unit's size."""
    arguments = options("t2i", t2i={"timesteps": "truncated"}, image_size=[128, 160], per_device_train_batch_size=8)
    trainer = make_trainer(model=aligned(), **{**arguments, "rows": image_rows("t2i", 8, (2, 5))})
    window = first_window(trainer)
    units = [unit for units in window.micro_batches for unit in units]
    assert max(sum(int(window.experiences[i].target[0, 0].sum()) for i in unit.indices) for unit in units) > 256
    assert_on_policy(trainer, window, {"t2i"})


def test_attended_padding_keeps_the_laws(make_trainer):
    arguments = options("t2i", attn_mask_mode="none", max_prompt_length=90)
    trainer = make_trainer(model=aligned(), **arguments)
    window = first_window(trainer)
    assert {len(row.ids) for row in window.experiences} == {91 + 18}
    assert_on_policy(trainer, window, {"t2i"})


@pytest.mark.parametrize("case", ["exact", "k3, guided"])
def test_the_law_can_fail(make_trainer, case):
    trainer = make_trainer(lora=True, **options("mixed", t2i=T2I[case]))
    window = first_window(trainer)
    add_old_and_reference(trainer.pipeline(), window, always_old=True)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    for _, _, terms in losses_of(trainer, window):
        assert not bool((terms.ratio == 1.0).all())
        assert bool((terms.kl > 0).all())


@pytest.mark.parametrize("lora", [False, True])
def test_a_policy_that_does_not_move_stays_at_ratio_one(make_trainer, lora):
    trainer = make_trainer(
        lora=lora, model=aligned(), learning_rate=0.0, max_steps=4, **options("mixed", t2i=GUIDED, num_iterations=2)
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "kl" in log]
    assert len(logs) == 4
    assert all(log["ratio/max"] == log["ratio/mean"] == 1.0 and log["kl"] == 0.0 for log in logs)
    assert all(log["grad_norm"] > 0 for log in logs)
    assert bool(trainer._window.experiences[0].old_known[1:].all())
    assert {"reward/text", "reward/mmu", "reward/t2i"} <= logs[0].keys()


# ---- loss scale, order, accumulation ----


@pytest.mark.parametrize(("kind", "lora"), [("t2i", False), ("mmu", False), ("mixed", True)])
def test_loss_is_minus_the_mean_advantage(make_trainer, kind, lora):
    trainer = make_trainer(
        lora=lora, beta=0.0, **options(kind, 8, GUIDED, steps_per_generation=2, num_generations=2, num_noise_samples=2)
    )
    window = first_window(trainer)
    given = [3.0, -1.0, 0.5, 2.0, 0.25, 1.0, -0.5, 4.0]
    for row, advantage in zip(window.experiences, given, strict=True):
        row.advantage = advantage
    window = rebuild_window(trainer.pipeline(), window.experiences, window.order)
    for k in range(2):
        total, gradient = total_and_gradient(trainer, window, k)
        assert total == pytest.approx(-sum(given) / 8, abs=1e-6)
        assert max(g.abs().max() for g in gradient.values()) > 0


@pytest.mark.parametrize(("kind", "lora"), [("t2i", False), ("mixed", True)])
def test_order_of_rows_changes_nothing(make_trainer, kind, lora):
    arguments = options(kind, 8, GUIDED, steps_per_generation=2, num_generations=2)
    trainer = make_trainer(lora=lora, **arguments)
    window = first_window(trainer)
    total, gradient = total_and_gradient(trainer, window)
    for order in (list(range(8)), [7, 3, 0, 5, 1, 6, 2, 4]):
        other = rebuild_window(trainer.pipeline(), window.experiences, order)
        other_total, other_gradient = total_and_gradient(trainer, other)
        assert abs(total - other_total) < 1e-5
        assert difference(gradient, other_gradient) < 1e-5


@pytest.mark.parametrize("lora", [False, True])
def test_accumulation_changes_nothing_in_a_mixed_run(make_trainer, lora):
    given = options("mixed", t2i=GUIDED)
    trainer = assert_accumulation_changes_nothing(
        make_trainer, (4,), lora=lora, max_steps=2, learning_rate=0.01 if lora else 0.001, **given
    )
    assert tasks_of(trainer._window) == {"text", "mmu", "t2i"}
