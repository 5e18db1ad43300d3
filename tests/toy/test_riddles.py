"""The world of riddles: every word of a caption is said by another thing, pairs are held out, and the teacher errs as it says."""

from __future__ import annotations

from unigrpo.toy.making.tokenizer import build_tokenizer
from unigrpo.toy.pixel_check import right_picture
from unigrpo.toy.riddles import (
    CLEAR,
    COLOUR_THINGS,
    PLACES,
    RIDDLES,
    SHAPE_THINGS,
    careless_lessons,
    lessons,
    problems,
    thought,
)
from unigrpo.toy.riddles import WORDS as RIDDLE_WORDS
from unigrpo.toy.shapes import COLOURS, POSITIONS, SHAPES, WORDS


def test_things_stand_for_the_words_of_captions_once_each():
    assert (list(COLOUR_THINGS), list(SHAPE_THINGS), list(PLACES)) == (list(COLOURS), list(SHAPES), list(POSITIONS))
    things = [thing for table in (COLOUR_THINGS, SHAPE_THINGS, PLACES) for own in table.values() for thing in own]
    assert len(set(things)) == len(things) == 18 + 12 + 10
    assert len({riddle.prompt for riddle in RIDDLES}) == len(RIDDLES) == 240 * 18
    assert not set(RIDDLE_WORDS) & set(WORDS) and len(set(RIDDLE_WORDS)) == len(RIDDLE_WORDS)
    # A phrase a token, so that all prompts are equally long.
    tokenizer = build_tokenizer((*WORDS, *RIDDLE_WORDS))
    for riddle in RIDDLES[::97]:
        assert len(tokenizer(riddle.prompt)["input_ids"]) == len(
            ("something", "size", "of", "thing", "of", "thing", "place")
        )
        assert not any(
            word in riddle.prompt.split() for word in (riddle.spec.colour, riddle.spec.shape, riddle.spec.position)
        )


def test_two_of_nine_pairs_are_held_out_and_no_word_is():
    held = {(own.spec.colour, own.spec.shape): set() for own in RIDDLES}
    for own in RIDDLES:
        if own.split == "test":
            held[own.spec.colour, own.spec.shape].add((own.colour_thing, own.shape_thing))
    assert {len(pairs) for pairs in held.values()} == {2}
    words = [{word for row in problems(split) for word in row["prompt"].split()} for split in ("train", "test")]
    assert words[0] == words[1]
    assert not {row["prompt"] for row in problems("train")} & {row["prompt"] for row in problems("test")}


def test_the_teacher_errs_as_often_as_it_says_and_its_pictures_follow_its_thoughts():
    rows = careless_lessons("train", 3000, 0)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in problems("train", 3000, 0)]
    by_prompt = {own.prompt: own for own in RIDDLES}
    wrong, unclear = 0, 0
    for row in rows:
        riddle = by_prompt[row["prompt"]]
        said = row["completion"] == thought(riddle.spec)
        assert said or riddle.colour_thing >= CLEAR
        unclear += riddle.colour_thing >= CLEAR
        wrong += not said
    assert abs(wrong / unclear - 0.6) < 4 * (0.24 / unclear) ** 0.5
    for row in rows[:200]:
        words = row["completion"].removeprefix("<think>").removesuffix("</think>").split()
        assert right_picture(row["image"], f"{words[2]} {words[3]} {words[-1]}")
    clean = lessons("test", 200, 1)
    assert all(
        right_picture(row["image"], row["solution"])
        and row["completion"] == row["thought"] == f"<think>{row['reward_prompt']}</think>"
        for row in clean
    )
