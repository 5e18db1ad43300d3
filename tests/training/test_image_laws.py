"""What images add to the training step's laws of ``test_trainer_laws``: the exact KL, guidance, large units, attended padding."""

from __future__ import annotations

import pytest

from ..support.images import GUIDED, assert_on_policy, image_rows, options
from ..support.laws import aligned, assert_accumulation_changes_nothing, first_window


T2I = {"exact": {}, "k3, guided": {"kl_estimator": "k3", **GUIDED}, "exact, hot": {"temperature": 1.7, **GUIDED}}


@pytest.mark.parametrize(("case", "lora"), [("exact", False), ("k3, guided", False), ("exact, hot", True)])
def test_images_to_make_start_at_ratio_one_and_kl_zero(make_trainer, case, lora):
    trainer = make_trainer(lora=lora, model=aligned(), **options("t2i", t2i=T2I[case], num_noise_samples=2))
    window = first_window(trainer)
    assert {len(row.ids) for row in window.experiences} == {20 + caption + 1 for caption in (2, 70, 5, 9)}
    assert_on_policy(trainer, window, {"t2i"} if case.startswith("exact") else set())


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


# ---- loss scale, order, accumulation ----


def test_accumulation_changes_nothing_in_a_mixed_run(make_trainer):
    given = options("mixed", t2i=GUIDED)
    trainer = assert_accumulation_changes_nothing(
        make_trainer, (4,), lora=True, max_steps=2, learning_rate=0.01, **given
    )
    assert {row.task for row in trainer._window.experiences} == {"text", "mmu", "t2i"}
