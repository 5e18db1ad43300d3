"""Runs of MMaDA-Parallel-A through the trainer of every family: a picture in, an edited one and a text out."""

from __future__ import annotations

import pytest
import torch

from unigrpo import MaskedDenoisingConfig, MaskedDenoisingTrainer
from unigrpo.config.denoising_presets import objectives_of
from unigrpo.data.image_codes import ImageCodec
from unigrpo.data.pictures import fit_image, to_pixels
from unigrpo.models import MMaDAPolicy
from unigrpo.training.given import Writer

from ..support.given_runs import SMALL
from ..support.images import assert_on_policy, picture, tiny_tokenizer
from ..support.laws import first_window
from ..support.runs import history
from ..support.tiny import tiny_model, tiny_processor
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


def given_rows() -> list[dict]:
    rows = [{**row, "task": "r2i"} for row in lumina_rows("i2i", 3)]
    return [{**row, "completion": f"w{5 + n} w9", "edited_image": picture(7 + n)} for n, row in enumerate(rows)]


def test_given_edits_and_texts_are_learned_together(tmp_path):
    model, policy = tiny_parallel_a()
    changed = {"max_length": 80, "max_steps": 12, "learning_rate": 2e-2, "image_size": [32, 48]}
    changed |= {"objective": "mmada_parallel_a", "image_tokenizer": Cells()}
    args = MaskedDenoisingConfig(str(tmp_path / "run"), **{**SMALL, **changed})
    trainer = MaskedDenoisingTrainer(model, args, given_rows(), given_rows(), processing_class=policy.processor)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.7 * before


def test_a_given_row_is_the_sampled_layout_with_the_edit_before_the_text():
    _, policy = tiny_parallel_a()
    codec = ImageCodec(Cells(), policy)
    sizes = {"max_length": 80, "image_size": [32, 48], "image_transform": "squash"}
    whole = policy.token_space("text")
    writer = Writer(policy, objectives_of("mmada_parallel_a"), codec, vocabulary=whole, **sizes)
    row = given_rows()[0]
    written = writer.write(row, "a row")
    ids = written.canvas.ids[0]
    shown, drawn = codec.encode([row["image"], row["edited_image"]], [32, 48], ["squash"] * 2)
    assert (ids[policy.token_space("picture").contains(ids)] - OFFSET).tolist() == [*shown.tolist(), *drawn.tolist()]
    assert (ids[written.codes] - OFFSET).tolist() == drawn.tolist()
    assert ids[written.trained & ~written.codes].tolist() == [5, 9, policy.stop_token_ids[-1]]
    empty = policy.encode(
        [{**row, "image_codes": shown, "image_grid": (2, 3)}], "thought", max_completion_length=3, image_grid=(2, 3)
    )
    assert torch.equal(ids.masked_fill(written.trained, policy.mask_token_id), empty.ids[0])


def test_rows_that_cannot_be_edits_are_refused():
    _, policy = tiny_parallel_a()
    codec, sizes = ImageCodec(Cells(), policy), {"max_length": 80, "image_size": [32, 48]}
    writer = Writer(policy, objectives_of("mmada_parallel_a"), codec, vocabulary=policy.token_space("text"), **sizes)
    row = given_rows()[0]
    with pytest.raises(ValueError, match=r"rows\[0\]: a row of MMaDA-Parallel-A has two pictures"):
        writer.write({key: value for key, value in row.items() if key != "edited_image"}, "rows[0]")
    with pytest.raises(ValueError, match=r"rows\[0\] has an image to edit and no 'edited_image' column"):
        writer.write({**row, "task": "i2i", "edited_image": None}, "rows[0]")
    other = MMaDAPolicy.from_model(tiny_model(), tiny_processor())
    mmada = Writer(
        other,
        objectives_of("mmada_cot"),
        ImageCodec(tiny_tokenizer(), other),
        vocabulary=other.token_space("text"),
        max_length=60,
        image_size=64,
    )
    with pytest.raises(ValueError, match="MMaDA was published without a layout for edits"):
        mmada.write(row, "rows[0]")
