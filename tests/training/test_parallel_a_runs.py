"""Runs of MMaDA-Parallel-A through the trainer of every family: a picture in, an edited one and a text out."""

from __future__ import annotations

import pytest

from unigrpo.data.pictures import fit_image, to_pixels

from ..support.images import assert_on_policy, picture
from ..support.laws import first_window
from ..support.runs import history
from ..support.tiny_lumina import OFFSET, SPECIAL, Cells, lumina_rows, tiny_parallel_a


def options(decoding: str, count: int = 4, picture: dict | None = None, **changes) -> dict:
    """Arguments of ``make_trainer``; pictures have 2 x 3 codes, texts 8 positions."""
    model, policy = tiny_parallel_a()
    text = {"max_completion_length": 8, "block_length": 8, "steps": 8}
    drawn = {"sampler": "maskgit", "steps": 3, "guidance_scale": 0.5, "image_guidance_scale": 0.5, **(picture or {})}
    return {
        "model": model,
        "processor": policy.processor,
        "rows": [{**row, "task": "r2i"} for row in lumina_rows("i2i", count)],
        "image_size": [32, 48],
        "image_tokenizer": Cells(),
        "shuffle_dataset": False,
        "r2i_decoding": decoding,
        "r2i_noise": "span" if decoding == "thought_first" else "joint",
        "task_overrides": {"thought": text, "picture": drawn},
        **changes,
    }


@pytest.mark.smoke
@pytest.mark.parametrize("guided", [{}, {"guidance": "both"}])
@pytest.mark.parametrize("decoding", ["thought_first", "parallel"])
def test_runs_start_at_ratio_one_and_kl_zero(make_trainer, decoding, guided):
    trainer = make_trainer(lora=True, **options(decoding, picture=guided))
    window = first_window(trainer)
    assert {row.task for row in window.experiences} == {"thought", "picture"}
    assert_on_policy(trainer, window, {"picture"})


def test_rewards_see_the_picture_that_came_in_the_text_and_the_edit(make_trainer):
    seen = []

    def told(completions, images, thoughts, **kwargs) -> list[float]:
        seen.extend(zip(completions, images, thoughts, strict=True))
        return [float(len(thought)) for thought in thoughts]

    trainer = make_trainer(rewards=told, **options("parallel"))
    window = first_window(trainer)
    size = trainer.args.num_generations
    for place, (made, shown, thought) in enumerate(seen):
        assert made.size == (48, 32) and isinstance(thought, str)
        assert [own.tobytes() for own in shown] == [picture(place // size).tobytes()]
    for row in window.experiences:
        start = row.ids.tolist().index(SPECIAL["boi"]) + 1
        lines = row.ids[start : start + 8].reshape(2, 4)
        pixels = to_pixels([fit_image(picture(row.index // size), 32, 48, "squash")])
        assert (lines[:, :3].flatten() - OFFSET).tolist() == Cells().encode(pixels)[0].tolist()


@pytest.mark.parametrize("decoding", ["thought_first", "joint", "parallel"])
def test_two_steps_move_the_policy(make_trainer, decoding):
    trainer = make_trainer(lora=True, max_steps=2, **options(decoding))
    before = {name: own.detach().clone() for name, own in trainer.model.named_parameters() if own.requires_grad}
    trainer.train()
    assert len(history(trainer)) >= 2
    moved = [name for name, own in trainer.model.named_parameters() if name in before and not own.equal(before[name])]
    assert moved
