"""Runs of MMaDA-Parallel-M: edits with a thought, written in parallel, with rewards that see both pictures and the thought."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from unigrpo import MaskedDenoisingConfig, MaskedDenoisingTrainer, load_policy
from unigrpo.config.denoising_presets import objectives_of
from unigrpo.data.image_codes import ImageCodec
from unigrpo.rollout.thoughts import ThoughtAndPicture
from unigrpo.runs.memory_sft import _shape
from unigrpo.training.given import Writer
from unigrpo.training.window import rebuild_window

from ..support.given_runs import SMALL
from ..support.images import assert_on_policy, picture, tiny_tokenizer
from ..support.laws import difference, first_window, total_and_gradient
from ..support.runs import history
from ..support.tiny_lumina import Cells, tiny_parallel_a
from ..support.tiny_parallel import edits, tiny_parallel


LENGTH, CODES = 6, 16
PARALLEL = {"r2i_decoding": "parallel", "r2i_noise": "joint", "max_completion_length": LENGTH, "block_length": LENGTH}


def options(count: int = 4, **changes) -> dict:
    """Arguments of ``make_trainer``; pictures have 16 codes, thoughts 6 places. ``changes`` with names of spans are their keys."""
    model, policy = tiny_parallel()
    spans = {
        "thought": {"steps": 6, **changes.pop("thought", {})},
        "picture": {"steps": 4, "sampler": "maskgit", "guidance_scale": 1.5, **changes.pop("picture", {})},
    }
    return {
        "model": model,
        "processor": policy.processor,
        "rows": edits(count),
        "image_size": 64,
        "image_tokenizer": tiny_tokenizer(),
        "shuffle_dataset": False,
        "task_overrides": spans,
        **PARALLEL,
        **changes,
    }


def brighter_and_brief(prompts, completions, images, thoughts, **_):
    """A picture brighter than the one that was to be edited, after a thought of few different words."""
    light = [
        np.asarray(after).mean() - np.asarray(before[0]).mean()
        for after, before in zip(completions, images, strict=True)
    ]
    return [own / 255 - 0.1 * len(set(thought.split())) for own, thought in zip(light, thoughts, strict=True)]


def test_an_answer_is_a_thought_and_an_edit_of_the_rows_picture(make_trainer):
    seen = {}

    def sees(prompts, completions, images, thoughts, task, **_):
        seen.update(after=completions, before=images, thoughts=thoughts, task=task)
        return [float(len(own)) for own in thoughts]

    trainer = make_trainer(rewards=sees, **options())
    window, special = first_window(trainer), trainer.policy.config.special_token_ids
    assert set(seen["task"]) == {"r2i"} and all(isinstance(own, str) for own in seen["thoughts"])
    assert all(isinstance(own, Image.Image) and own.size == (64, 64) for own in seen["after"])
    group = trainer.args.num_generations
    for number, (own,) in enumerate(seen["before"]):
        assert np.array_equal(np.asarray(own), np.asarray(picture(number // group).convert("RGB")))
    for thought, image in zip(window.experiences[::2], window.experiences[1::2], strict=True):
        assert (thought.task, image.task) == ("thought", "picture") and torch.equal(thought.ids, image.ids)
        ids = thought.ids.tolist()
        assert ids[:2] == [special["interleave"], special["soi"]] and len(ids) == 2 * CODES + 2 * LENGTH + 7
        (codes,) = trainer.pipeline().codec.encode([seen["before"][image.index][0]], 64, ["squash"])
        assert torch.equal(thought.ids[2 : 2 + CODES] - trainer.policy.config.image_token_offset, codes)
        places = [own.fill_mask.nonzero().squeeze(1).tolist() for own in (image, thought)]
        assert places[0][-1] < places[1][0] and (len(places[0]), len(places[1])) == (CODES, LENGTH)
        # The picture acts at 3 of 6 steps only where the text's clock says so.
        assert set(image.step_map[image.completion_mask].tolist()) <= {1, 2, 3, 4, 5}


BOTH = {"guidance": "both", "guidance_scale": 1.0}


@pytest.mark.smoke
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    "spans",
    [
        {},
        {"picture": {**BOTH, "image_guidance_scale": 0.5}, "thought": {**BOTH, "guidance_direction": "away", "guidance_scale": 0.5}},
    ],
    ids=["plain", "guided"],
)  # fmt: skip
def test_spans_start_at_ratio_one_and_kl_zero(make_trainer, lora, spans):
    trainer = make_trainer(lora=lora, **options(num_noise_samples=2, **spans))
    window = first_window(trainer)
    assert {row.task for row in window.experiences} == {"thought", "picture"}
    assert_on_policy(trainer, window, {"picture"})


def test_order_of_rows_changes_nothing(make_trainer):
    trainer = make_trainer(**options(8, steps_per_generation=2, num_generations=2))
    window = first_window(trainer)
    total, gradient = total_and_gradient(trainer, window)
    other = rebuild_window(trainer.pipeline(), window.experiences, [7, 3, 0, 5, 1, 6, 2, 4])
    other_total, other_gradient = total_and_gradient(trainer, other)
    assert abs(total - other_total) < 1e-5 and difference(gradient, other_gradient) < 1e-5


@pytest.mark.parametrize("lora", [False, True])
def test_two_steps_then_a_checkpoint_resumes_and_reopens(make_trainer, tmp_path, lora):
    model, policy = tiny_parallel()
    model.save_pretrained(tmp_path / "base")
    policy.processor.save_pretrained(tmp_path / "base")
    own = {**options(picture={"image_guidance_scale": 1.0}), "model": str(tmp_path / "base"), "processor": None}
    own |= {"max_steps": 2, "lora": lora, "rewards": brighter_and_brief}
    whole = make_trainer(save_strategy="steps", save_steps=1, **own)
    whole.train()
    log = whole.state.log_history[0]
    assert {"kl/thought", "kl/picture", "ratio/mean/thought", "ratio/mean/picture", "reward"} <= log.keys()
    again = make_trainer(output_dir=str(tmp_path / "again"), **own)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert history(again)[2] == history(whole)[2]
    whole.save_model()
    opened = load_policy(str(tmp_path / "run"), device="cpu", image_tokenizer=tiny_tokenizer())
    ids = torch.arange(12)[None]
    with torch.no_grad():
        found, before = opened.model(ids).logits, model(ids).logits
        torch.testing.assert_close(found, whole.model(ids).logits, rtol=1e-5, atol=1e-5)
    assert not torch.equal(found, before)
    asked = {"task": "r2i", "images": picture(0), "r2i_decoding": "parallel", "max_completion_length": 6}
    (answer,) = opened.generate("w3 w4", image_size=64, steps=6, block_length=6, **asked)
    assert isinstance(answer, ThoughtAndPicture) and answer.picture.size == (64, 64)


def test_a_trainer_answers_in_the_sizes_of_its_spans(make_trainer):
    short = {"max_prompt_length": 8, "max_completion_length": 4, "block_length": 4}
    trainer = make_trainer(**options(picture={"image_size": 32}, thought=short))
    asked = {"task": "r2i", "images": picture(0), "r2i_decoding": "parallel"}
    (answer,) = trainer.generate("w3 w4", **asked)
    assert answer.picture.size == (32, 32) and len(answer.thought.split()) <= 4
    (drawn,) = trainer.generate("w3 w4", task="t2i")
    assert drawn.size == (64, 64)


def test_a_row_without_a_picture_is_named(make_trainer):
    rows = edits(4)
    del rows[2]["image"]
    with pytest.raises(ValueError, match=r"train_dataset\[2\].*give each row an 'image'"):
        make_trainer(**options(rows=rows))


def test_given_edits_and_thoughts_are_learned(tmp_path):
    """One of the two at a time: a thought before there is an edit, an edit with the whole thought behind it."""
    model, policy = tiny_parallel()
    rows = [{**row, "completion": f"w{5 + n} w9", "edited_image": picture(7 + n)} for n, row in enumerate(edits(4))]
    changed = {"max_length": 80, "thought_length": 8, "max_steps": 16, "learning_rate": 2e-2, "image_size": 64}
    changed |= {"objective": "mmada_parallel_m", "image_tokenizer": tiny_tokenizer()}
    args = MaskedDenoisingConfig(str(tmp_path / "run"), **{**SMALL, **changed})
    trainer = MaskedDenoisingTrainer(model, args, rows, rows, processing_class=policy.processor)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for own in ("eval_thought_loss", "eval_picture_loss"):
        assert after[own] < 0.7 * before[own], own


@pytest.mark.parametrize("family", ["mmada_parallel_m", "mmada_parallel_a"])
def test_memory_counts_a_given_row_with_both_pictures_and_its_padded_instruction(family):
    of_m = family == "mmada_parallel_m"
    (_, policy), codes = (tiny_parallel(), tiny_tokenizer()) if of_m else (tiny_parallel_a(), Cells())
    keys = {"max_length": 80, "thought_length": 8, "image_size": 64}
    writer = Writer(
        policy, objectives_of(family), ImageCodec(codes, policy), vocabulary=policy.token_space("text"), **keys
    )
    row = {"prompt": "w1", "task": "r2i", "image": picture(0), "completion": "w5", "edited_image": picture(1)}
    args = MaskedDenoisingConfig("unused", use_cpu=True, objective=family, **keys)
    counted = _shape(args, policy.config, codes.config, "r2i").length
    # What A is asked and says may fill max_length; here it does not.
    text = len(policy.processor.encode_prompt("w1", "r2i")) + 2
    assert counted == writer.write(row, "a row").canvas.ids.shape[1] + (0 if of_m else 80 - text)
