"""The shipped networks of the emoji world: what they can do on scenes that none of them has seen, and their sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from unigrpo import load_policy
from unigrpo.data.pictures import to_images
from unigrpo.models.magvit import MagvitV2
from unigrpo.toy import emoji
from unigrpo.toy.emoji_check import clear_picture, right_picture
from unigrpo.toy.making import clip, clip_worlds, emoji_sheet, image_tokenizer
from unigrpo.training.contact_sheet import contact_sheet


SHIPPED = ("emoji", "emoji_tokenizer", "emoji_clip")


@pytest.fixture(scope="module")
def magvit():
    return MagvitV2.from_pretrained(image_tokenizer.checkpoint("emoji"))


@pytest.mark.smoke
def test_pictures_of_held_out_scenes_come_back_from_their_codes(magvit):
    """Whatever a policy draws is drawn with these codes: this is what it could reach."""
    scenes, pixels = image_tokenizer.emoji_pictures("test", 64, seed=5)
    restored = to_images(image_tokenizer.reconstruct(magvit, pixels))
    assert all(clear_picture(image, emoji.caption(scene)) for image, scene in zip(restored, scenes, strict=True))


def test_the_clip_tells_a_held_out_caption_from_one_with_an_edit(magvit):
    model, tokenizer = clip.load(clip.checkpoint("emoji"))[0], AutoTokenizer.from_pretrained(clip.checkpoint("emoji"))

    def near(pixels, texts):
        return clip.similarity(model, pixels, clip.encode(tokenizer, texts))

    won = clip_worlds.emoji_figures(near, magvit, count=64)
    assert won and min(won.values()) > 0.85, won


def test_the_start_draws_some_held_out_scenes_right_and_knows_more_than_it_shows():
    """At temperature 1 as its teacher erred; cooler and slower it errs less: there is something to learn."""
    shipped = load_policy("builtin:emoji", device="cpu")
    assert shipped.model.dtype == torch.float32 and shipped.model.config.image_tokenizer == "builtin:emoji_tokenizer"
    rows = emoji.problems("test", 64)
    settings = {"task": "t2i", "sampler": "emerge", "guidance_scale": 0.0, "batch_size": 64}
    shares = []
    for temperature, steps in ((1.0, 8), (0.5, 12)):
        drawn = shipped.generate([row["prompt"] for row in rows], temperature=temperature, steps=steps, **settings)
        shares.append(np.mean([right_picture(own, row["solution"]) for own, row in zip(drawn, rows, strict=True)]))
    assert 0.2 < shares[0] < 0.65 and shares[1] > shares[0] + 0.1, shares


@pytest.mark.slow  # The picture of the README is made by hand.
def test_the_sheet_shows_what_was_wrong_before_and_is_right_after(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    scenes = {
        row["prompt"]: emoji.Scene(row["relation"], row["first"], row["second"]) for row in emoji.problems("test", 120)
    }

    def drawn(model, captions):
        turned = captions if model == "after" else [*captions[:100], *reversed(captions[100:])]
        return [emoji.render(scenes[caption], rng) for caption in turned]

    seen = []
    monkeypatch.setattr(emoji_sheet, "drawn", drawn)
    monkeypatch.setattr(
        emoji_sheet, "contact_sheet", lambda rows, **how: seen.append(how) or contact_sheet(rows, **how)
    )
    emoji_sheet.main(["after", str(tmp_path / "sheet.png")])
    assert seen[0]["column_labels"] == list(scenes)[100:106] and (tmp_path / "sheet.png").stat().st_size > 10_000
    assert "100 right before and 120 after" in capsys.readouterr().out
