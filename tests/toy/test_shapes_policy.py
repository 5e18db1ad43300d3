"""The shipped policy of the shapes world: what its teacher says, what it can do at the start, and its size."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from unigrpo import load_policy
from unigrpo.models import MMaDAPolicy, MMaDAProcessor
from unigrpo.models.magvit import MagvitV2
from unigrpo.toy.making import shapes_cold_start as cold_start
from unigrpo.toy.making.cold_start import build_model
from unigrpo.toy.making.image_tokenizer import gallery
from unigrpo.toy.making.tokenizer import build_tokenizer
from unigrpo.toy.pixel_check import inspect, right_picture
from unigrpo.toy.shapes import COLOURS, QUESTIONS, SHAPES, WORDS, caption, problems, questions


@pytest.fixture(scope="module")
def shipped():
    return load_policy("builtin:shapes", dtype="float32")


@pytest.fixture(scope="module")
def teacher() -> cold_start.Teacher:
    tokenizer = build_tokenizer(WORDS)
    model = build_model(
        tokenizer, generator=torch.Generator().manual_seed(0), codebook_size=512, sampling_defaults=cold_start.SAMPLING
    )
    policy = MMaDAPolicy(model.config, MMaDAProcessor(tokenizer))
    specs, pixels = gallery(1, 0)
    codes = MagvitV2.from_pretrained(cold_start.IMAGE_TOKENIZER).encode(pixels)
    return cold_start.Teacher(policy, specs, codes, random.Random(0))


def test_every_word_is_one_token_and_texts_come_back():
    tokenizer = build_tokenizer(WORDS)
    text = "a large red circle at the left"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(tokens) == 7 and tokenizer.decode(tokens) == text
    for question in QUESTIONS.values():
        assert tokenizer.decode(tokenizer(question, add_special_tokens=False)["input_ids"]) == question


def test_the_teacher_errs_as_often_as_it_says(teacher):
    """A redrawn word is the right one again once in 6 colours or 4 shapes."""
    count = 4000
    rows = [teacher.mmu() for _ in range(count)]
    codes = {tuple(own.tolist()): spec for spec, own in zip(teacher.specs, teacher.codes, strict=True)}
    outcomes = {"colour": Counter(), "shape": Counter()}
    for row, answer in rows:
        spec = codes[tuple(row["image_codes"].tolist())]
        for name in outcomes:
            if row["prompt"] == QUESTIONS[name]:
                outcomes[name][answer == getattr(spec, name)] += 1
    for name, kinds in (("colour", len(COLOURS)), ("shape", len(SHAPES))):
        wrong = cold_start.WRONG_ANSWER * (1 - 1 / kinds)
        seen, total = outcomes[name][False], outcomes[name].total()
        assert abs(seen / total - wrong) < 4 * (wrong * (1 - wrong) / total) ** 0.5
    captions = [teacher.t2i()[0]["prompt"] for _ in range(count)]
    empty = captions.count("") / count
    assert abs(empty - cold_start.EMPTY_CAPTION) < 4 * (0.1 * 0.9 / count) ** 0.5


@pytest.mark.parametrize("task", ["t2i", "mmu", "text"])
def test_batches_hold_their_answers(teacher, task):
    canvas = teacher.batch(task, 6)
    assert not (canvas.ids == teacher.policy.mask_token_id).any()
    assert canvas.token_space.contains(canvas.ids[canvas.fill_mask]).all()
    if task == "t2i":
        codes = canvas.ids[canvas.fill_mask].view(6, -1) - teacher.policy.config.image_token_offset
        known = {tuple(own.tolist()) for own in teacher.codes}
        assert {tuple(own.tolist()) for own in codes} <= known


def test_a_few_steps_lower_the_loss(teacher):
    generator = torch.Generator().manual_seed(1)
    model = build_model(
        teacher.policy.processor.tokenizer,
        generator=generator,
        codebook_size=512,
        n_layers=1,
        sampling_defaults=cold_start.SAMPLING,
    )

    def loss() -> float:
        with torch.no_grad():
            fixed = torch.Generator().manual_seed(2)
            return sum(float(cold_start.masked_loss(model, teacher.policy, own, generator=fixed)) for own in batches)

    batches = [teacher.batch(task, 16) for task in cold_start.ROWS]
    before = loss()
    cold_start.train(model, teacher, steps=12, learning_rate=3e-3, generator=generator)
    assert loss() < before - 0.5


def test_the_start_draws_some_pictures_right(shipped):
    """Between a fifth and two thirds, nearly all of them shapes: there is something to learn."""
    rows = problems("test", 240)
    pictures = shipped.generate(
        [row["prompt"] for row in rows], task="t2i", sampler="emerge", steps=8, guidance_scale=0.0, batch_size=120
    )
    right = [right_picture(picture, row["solution"]) for picture, row in zip(pictures, rows, strict=True)]
    assert 0.3 < sum(right) / len(right) < 0.65
    assert sum(inspect(picture).valid for picture in pictures) / len(pictures) > 0.85


def test_guidance_makes_pictures_follow_their_captions_better(shipped):
    rows = problems("test", 96)
    shares = []
    for scale in (0.0, 2.0):
        pictures = shipped.generate(
            [row["prompt"] for row in rows], task="t2i", sampler="emerge", steps=8, guidance_scale=scale, batch_size=96
        )
        shares.append(sum(right_picture(p, row["solution"]) for p, row in zip(pictures, rows, strict=True)) / 96)
    assert shares[1] > shares[0] + 0.1


def test_the_start_answers_and_adds(shipped):
    asked = [row for row in questions("test", 240) if row["question"] != "caption"]
    answers = shipped.generate(
        [row["prompt"] for row in asked], images=[row["image"] for row in asked], batch_size=120
    )
    hits = [answer == row["solution"] for answer, row in zip(answers, asked, strict=True)]
    assert sum(hits) / len(hits) > 0.5
    assert shipped.generate("Ann has 127 pens and gets 4. Total?")[0].startswith("<think>")


def test_every_caption_fits_the_canvas(shipped):
    for row in problems("train"):
        assert row["prompt"] == caption(cold_start.Spec(row["size"], row["colour"], row["shape"], row["position"]))
        shipped.policy.encode([row], "t2i", image_tokens=16)


def test_the_checkpoint_is_small_and_names_its_tokenizer(shipped):
    files = list(Path(cold_start.CHECKPOINT).iterdir())
    assert sum(file.stat().st_size for file in files) < 3_000_000
    assert shipped.model.config.image_tokenizer == "builtin:shapes_tokenizer"
    assert shipped.policy.image_size == 32
