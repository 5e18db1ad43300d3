"""The emoji world: what is held out, what captions say, and pictures that need no font."""

from __future__ import annotations

import re
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest

from unigrpo.toy import emoji
from unigrpo.toy.emoji import EMOJI, NAMES, PLURALS, SCENES, SPLITS, Scene, caption, problems, render, scenes, split_of
from unigrpo.toy.emoji_lessons import WRONG_NAME, careless_pictures, gallery, pictures


def things_said(scene: Scene) -> tuple:
    """A pair in any order and relation, or how many of one."""
    return (scene.relation, scene.first) if scene.second is None else tuple(sorted((scene.first, scene.second)))


def test_what_is_said_together_is_in_one_split_and_every_word_is_in_both():
    train, test = ({things_said(scene) for scene in scenes(split)} for split in SPLITS)
    assert len(scenes("train")) + len(scenes("test")) == len(SCENES) == 64 * 2 + 2 * 64 * 63
    assert not train & test
    assert 0.10 < len(test) / (len(train) + len(test)) < 0.14
    words = [Counter(word for row in problems(split) for word in row["prompt"].split()) for split in SPLITS]
    names = {word for name in NAMES for word in name.split()}
    assert names <= words[0].keys() and names <= words[1].keys()
    # Both ways round of a pair are tested, each name many times.
    assert {Scene(own.relation, own.second, own.first) for own in scenes("test") if own.second} == {
        own for own in scenes("test") if own.second
    }
    named = Counter(name for own in scenes("test") for name in (own.first, own.second))
    assert min(named[name] for name in NAMES) >= 16


def test_a_caption_says_one_scene_in_known_words():
    captions = [caption(scene) for scene in SCENES]
    assert len(set(captions)) == len(SCENES)
    assert {word for text in captions for word in text.split()} == set(emoji.WORDS)
    assert caption(Scene("above", "fox", "hamburger")) == "a fox above a hamburger"
    assert caption(Scene("left of", "apple", "star")) == "an apple left of a star"
    assert (caption(Scene("two", "fox")), caption(Scene("alone", "ice cream"))) == ("two foxes", "an ice cream")


def test_a_clue_stands_for_one_name_and_says_none():
    clues = [(name, clue) for name, (_, *own) in EMOJI.items() for clue in own]
    assert (
        len({clue for _, clue in clues})
        == 2 * len({character for character, *_ in EMOJI.values()})
        == 2 * len(NAMES)
        == 128
    )
    said = (rf"\b({'|'.join([*NAMES, *PLURALS.values()])})\b", "two", "left", "above")
    assert not [clue for _, clue in clues if re.search("|".join(said), clue)]


@pytest.mark.parametrize("split", SPLITS)
def test_a_row_says_its_scene_and_every_scene_has_one(split):
    for row in problems(split, 50, 3):
        scene = Scene(row["relation"], row["first"], row["second"])
        assert row["task"] == "t2i" and split_of(scene) == split
        assert row["prompt"] == row["solution"] == row["reward_prompt"] == caption(scene)
    assert len({row["prompt"] for row in problems(split)}) == len(problems(split)) == len(scenes(split))


def test_an_emoji_stands_where_its_relation_says_on_one_ground():
    rng = np.random.default_rng(0)
    ground = round(255 * emoji.GROUND)
    for relation, empty in {"left of": np.s_[:12], "above": np.s_[:, :12], "alone": np.s_[:12]}.items():
        second = None if relation == "alone" else "car"
        seen = {render(Scene(relation, "frog", second), rng).tobytes() for _ in range(40)}
        assert len(seen) == len(emoji.VARIANTS) ** (1 if second is None else 2)
        pixels = np.asarray(render(Scene(relation, "frog", second), rng))
        assert pixels.shape == (48, 48, 3) and (pixels[empty] == ground).all()
        assert (pixels != ground).any()


def test_the_licence_lies_beside_the_sprites():
    folder = files("unigrpo") / "toy" / "sprites"
    assert "SIL OPEN FONT LICENSE Version 1.1" in (folder / "OFL.txt").read_text(encoding="utf-8")
    assert len((folder / "emoji.png").read_bytes()) < 400_000


@pytest.mark.parametrize("split", SPLITS)
def test_the_teacher_errs_as_often_as_it_says_and_never_leaves_its_split(split):
    shown = {id(image): scene for scene, image in gallery(split, 1)}
    assert all(row["prompt"] == caption(shown[id(row["image"])]) for row in pictures(split, 300, 1))
    rows = careless_pictures(split, 3000, 1)
    said = [Scene(row["relation"], row["first"], row["second"]) for row in rows]
    assert {split_of(scene) for scene in said} == {split}
    pairs = [(own, shown[id(row["image"])]) for own, row in zip(said, rows, strict=True) if own.second is not None]
    assert all(own.relation == true.relation for own, true in pairs)
    wrong = np.mean([own.first != true.first for own, true in pairs])
    # A mistake that leaves the split is drawn again, and most that leave the test split do.
    assert wrong == pytest.approx(WRONG_NAME * 63 / 64, abs=0.03) if split == "train" else 0.02 < wrong < WRONG_NAME
