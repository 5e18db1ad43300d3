"""The shipped policy of the shapes world: what its teacher says, what it can do at the start, and its size."""

from __future__ import annotations

import pytest

from unigrpo import load_policy
from unigrpo.toy.pixel_check import inspect, right_picture
from unigrpo.toy.shapes import Spec, caption, problems, questions


@pytest.fixture(scope="module")
def shipped():
    return load_policy("builtin:shapes", dtype="float32")


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
        assert row["prompt"] == caption(Spec(row["size"], row["colour"], row["shape"], row["position"]))
        shipped.policy.encode([row], "t2i", image_tokens=16)


def test_the_checkpoint_names_its_tokenizer(shipped):
    assert shipped.model.config.image_tokenizer == "builtin:shapes_tokenizer"
    assert shipped.policy.image_size == 32
