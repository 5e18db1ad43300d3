"""The shapes world: splits, captions, pictures, rows."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from unigrpo.toy.shapes import (
    COLOURS,
    FORMS,
    POSITIONS,
    QUESTIONS,
    RADII,
    SHAPES,
    SIZES,
    SPECS,
    WORDS,
    Spec,
    caption,
    problems,
    questions,
    render,
    signed_distance,
    specs,
    split_of,
)


def spec_of(row) -> Spec:
    return Spec(row["size"], row["colour"], row["shape"], row["position"])


def test_splits_partition_the_world():
    train, test = set(specs("train")), set(specs("test"))
    assert (len(train), len(test)) == (192, 48)
    assert train | test == set(SPECS) and len(SPECS) == 240
    assert all(split_of(spec) == "test" for spec in test)


@pytest.mark.parametrize("split", ["train", "test"])
def test_both_splits_are_balanced_and_hold_every_word(split):
    members = specs(split)
    for field, words in {"size": SIZES, "colour": COLOURS, "shape": SHAPES, "position": POSITIONS}.items():
        counts = Counter(getattr(spec, field) for spec in members)
        assert set(counts) == set(words)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert {(spec.colour, spec.shape) for spec in members} == {(c, s) for c in COLOURS for s in SHAPES}


def test_captions_by_form():
    spec = Spec("small", "red", "circle", "left")
    assert [caption(spec, form) for form in FORMS] == [
        "a small red circle at the left",
        "a small red circle",
        "a red circle at the left",
        "a red circle",
    ]
    assert len({caption(one) for one in SPECS}) == 240


def test_words_are_exactly_what_is_said():
    said = [caption(spec, form) for spec in SPECS for form in FORMS] + list(QUESTIONS.values())
    assert {word for text in said for word in re.findall(r"\w+|[^\w\s]", text)} == set(WORDS)
    assert len(set(WORDS)) == len(WORDS)


def test_pictures_have_the_stated_colours_and_a_dark_border():
    rng = np.random.default_rng(0)
    for spec in SPECS:
        pixels = np.asarray(render(spec, rng)) / 255
        assert pixels[[0, 0, -1, -1], [0, -1, 0, -1]].max() <= 0.125
        brightest = pixels.reshape(-1, 3)[pixels.max(axis=2).argmax()]
        assert np.abs(brightest - COLOURS[spec.colour]).max() <= 0.055


@pytest.mark.parametrize("shape", SHAPES)
def test_distance_is_negative_inside_zero_on_the_outline_and_positive_outside(shape):
    at = lambda x, y: float(signed_distance(shape, np.array(x), np.array(y), 10.0))  # noqa: E731
    assert at(0.0, 0.0) < 0 < at(12.0, 0.0)
    outline = {"circle": (10.0, 0.0), "square": (9.0, 3.0), "triangle": (10.0, 9.0), "cross": (10.0, 3.6)}[shape]
    assert at(*outline) == pytest.approx(0.0, abs=1e-9)
    assert at(-outline[0], outline[1]) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("split", ["train", "test"])
def test_problems_cover_their_split_then_repeat(split):
    members = specs(split)
    rows = problems(split)
    assert Counter(map(spec_of, rows)) == Counter(members)
    twice = problems(split, 2 * len(members), seed=3)
    assert set(Counter(map(spec_of, twice)).values()) == {2}
    assert all(row["prompt"] == caption(spec_of(row)) and row["task"] == "t2i" for row in twice)


def test_questions_have_the_answers_of_their_pictures():
    rows = questions("test", 96)
    assert {row["question"] for row in rows} == set(QUESTIONS)
    for row in rows:
        spec = spec_of(row)
        assert row["task"] == "mmu" and row["prompt"] == QUESTIONS[row["question"]]
        assert row["image"].size == (32, 32) and row["image"].mode == "RGB"
        assert (
            row["solution"] == {"colour": spec.colour, "shape": spec.shape, "caption": caption(spec)}[row["question"]]
        )
    assert {spec_of(row) for row in rows} == set(specs("test"))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="long"):
        caption(SPECS[0], "long")
    with pytest.raises(ValueError, match="star"):
        signed_distance("star", np.zeros(1), np.zeros(1), RADII["small"])
