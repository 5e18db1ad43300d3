"""``object_check``: GenEval's cases by hand, its laws, and the shapes world's pixel checker as the detector."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unigrpo.rewards import get_reward
from unigrpo.rewards.objects import RELATIONS, ObjectCheck, relations
from unigrpo.toy.pixel_check import right_picture
from unigrpo.toy.shapes import problems, render, specs

from ..support.tiny_scorers import Broken, Log


PICTURE = Image.new("RGB", (8, 8))
LEFT, RIGHT, LOW = (0, 0, 10, 10), (30, 0, 40, 10), (0, 30, 10, 40)


def thing(name, box=LEFT, color=None, score=1.0):
    return {"class": name, "box": box, "color": color, "score": score}


def scores(found, **columns):
    """Strict and partial score of one picture in which ``found`` is found."""
    columns = {name: [own] for name, own in columns.items()}
    return tuple(
        ObjectCheck(lambda pictures, classes: [found], partial=partial)(["p"], [PICTURE], **columns)[0]
        for partial in (False, True)
    )


DOGS = [thing("dog", LEFT, "red"), thing("dog", RIGHT, "blue", 0.95), thing("cat", LOW, "red", 0.5)]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("include", "exclude", "strict", "partial"),
    [
        ([{"class": "dog"}], None, 1, 1),
        ([{"class": "bird", "count": 1}], None, 0, 0),
        ([{"class": "dog", "count": 2}, {"class": "bird"}], None, 0, 0.5),
        ([{"class": "dog", "count": 4}], None, 0, 0.5),
        ([{"class": "dog", "count": 2}], [{"class": "dog", "count": 3}], 1, 1),
        ([{"class": "dog", "count": 1}], [{"class": "dog", "count": 2}], 0, 0.75),
        (None, [{"class": "cat"}], 0, 0),
        (None, [{"class": "bird"}], 1, 1),
        ([{"class": "dog", "color": "red"}], None, 1, 1),
        ([{"class": "dog", "color": "blue"}], None, 0, 0.5),  # the surest dog is red
        ([{"class": "dog", "count": 2, "colour": "blue"}], None, 0, 0.75),
        ([{"class": "dog"}, {"class": "cat", "position": ["below", 0]}], None, 1, 1),
        ([{"class": "dog"}, {"class": "cat", "position": ["above", 0]}], None, 0, 2 / 3),
        ([{"class": "bird"}, {"class": "cat", "position": ["below", 0]}], None, 0, 1 / 3),
        ([{"class": "dog", "color": "blue"}, {"class": "cat", "position": ["below", 0]}], None, 0, 0.5),
        ([{"class": "dog"}, {"class": "cat", "color": "blue", "position": ["below", 0]}], None, 0, 0.5),
        ([{"class": "cat"}, {"class": "dog", "count": 2, "position": ["above", 0]}], None, 1, 1),
        ([{"class": "cat"}, {"class": "dog", "count": 2, "position": ["right of", 0]}], None, 0, 5 / 6),
    ],
)
def test_by_hand(include, exclude, strict, partial):
    assert scores(DOGS, include=include, exclude=exclude) == (strict, pytest.approx(partial))
    metadata = {"tag": "x", "include": include or [], "exclude": exclude or [], "prompt": "p"}
    for own in (metadata, json.dumps(metadata)):
        assert scores(DOGS, metadata=own) == (strict, pytest.approx(partial))
    assert scores(DOGS, include=include and json.dumps(include), exclude=exclude)[0] == strict


@pytest.mark.parametrize(
    ("box", "names"),
    [
        ((-30, 0, -20, 10), {"left of"}),
        ((30, 0, 40, 10), {"right of"}),
        ((0, -30, 10, -20), {"above"}),
        ((30, 30, 40, 40), {"right of", "below"}),
        ((1.9, 0, 11.9, 10), set()),  # apart by less than a tenth of 10 + 10
        ((6, 0, 16, 10), {"right of"}),  # (6 - 2) / 6
        ((3, 0, 13, 10), set()),  # (3 - 2) / 3
        (LEFT, set()),
    ],
)
def test_relations_by_hand(box, names):
    assert relations(thing("a", box), thing("b", LEFT)) == names
    mirrored = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert relations(thing("b", LEFT), thing("a", box)) == {mirrored[name] for name in names}


def test_thresholds():
    unsure = [thing("dog", score=0.5), thing("dog", score=0.2)]
    assert scores(unsure, include=[{"class": "dog"}]) == (1, 1)
    assert scores(unsure, include=[{"class": "dog", "count": 2}]) == (0, 0.5)
    assert scores(unsure, include=[{"class": "dog"}], tag="counting") == (0, 0)
    assert scores(unsure, metadata={"include": [{"class": "dog"}], "tag": "counting"}) == (0, 0)
    low = ObjectCheck(lambda *_: [unsure], threshold=0.1)
    assert low(["p"], [PICTURE], include=[[{"class": "dog", "count": 2}]]) == [1]


NAMES, COLOURS = st.sampled_from("abc"), st.sampled_from(["red", "blue", None])
CORNER = st.integers(0, 30)
THINGS = st.builds(
    lambda name, x, y, color, score: thing(name, (x, y, x + 8, y + 8), color, score),
    *(NAMES, CORNER, CORNER, COLOURS, st.floats(0, 1)),
)
EXCLUDED = st.lists(st.fixed_dictionaries({"class": NAMES, "count": st.integers(1, 3)}), max_size=2)


@st.composite
def included(draw):
    items = []
    for place in range(draw(st.integers(0, 3))):
        relation = st.tuples(st.sampled_from(list(RELATIONS)), st.integers(0, place - 1)) if place else st.none()
        position = draw(st.none() | relation)
        items.append(
            {"class": draw(NAMES), "count": draw(st.integers(1, 3)), "color": draw(COLOURS), "position": position}
        )
    return items


@given(st.lists(THINGS, max_size=6), included(), EXCLUDED)
def test_partial_is_1_exactly_where_strict_is(found, include, exclude):
    """Both are None together and in [0, 1]; what is unsure, or of a class that nobody names, changes nothing."""
    strict, partial = scores(found, include=include, exclude=exclude)
    if not include and not exclude:
        assert strict is partial is None
        return
    assert strict in (0, 1) and 0 <= partial <= 1 and (strict == 1) == (partial == 1)
    assert scores([*found, thing("z"), thing("a", score=0.29)], include=include, exclude=exclude) == (strict, partial)


def test_the_pixel_checker_is_a_detector():
    """With it the strict score is the shapes world's own measure, for every wish and every picture."""
    rng = np.random.default_rng(0)
    pictures = [render(spec, rng) for spec in specs("test")[::4]] + [Image.new("RGB", (32, 32))]
    strict, partial = (
        get_reward("object_check", detector="unigrpo.toy.pixel_check:detect", partial=own) for own in (False, True)
    )
    for row in problems("test", 12):
        wish = [{"class": row["shape"], "color": row["colour"], "position": row["position"]}]
        columns = {"include": [wish] * len(pictures)}
        found = strict([row["prompt"]] * len(pictures), pictures, **columns)
        assert found == [right_picture(picture, row["solution"]) for picture in pictures]
        shares = partial([row["prompt"]] * len(pictures), pictures, **columns)
        assert {round(3 * share) for share in shares} <= {0, 1, 2, 3} and shares[-1] == 0


def test_rows_batches_and_classes():
    """The detector sees RGB pictures, a batch at a time, with the classes of their rows; nothing else is asked of it."""
    calls = []

    def detector(pictures, classes):
        calls.append(([own.mode for own in pictures], classes))
        return [[thing("dog")]] * len(pictures)

    log = Log()
    wish, other = [{"class": "dog"}, {"class": "cat"}, {"class": "dog"}], [{"class": "bird"}]
    reward = ObjectCheck(detector, batch_size=2)
    found = reward(
        ["p"] * 6,
        [PICTURE.convert("L"), "a dog", PICTURE, Broken(), PICTURE, PICTURE],
        include=[wish, wish, None, wish, wish[:1], None],
        exclude=[None] * 5 + [other],
        log_metric=log,
    )
    assert found == [0.0, None, None, None, 1.0, 1.0] and log == {"object_check/failed": 1.0}
    assert calls == [(["RGB", "RGB"], [["dog", "cat"], ["dog"]]), (["RGB"], [["bird"]])]
    assert reward(["p"], ["a text"]) == [None]


class Kennel:
    def __init__(self, size):
        self.size = size

    def __call__(self, pictures, classes):
        return [[thing("dog")] * self.size for _ in pictures]


def test_a_class_is_made_with_its_arguments():
    reward = get_reward("object_check", detector=f"{__name__}:Kennel", detector_args={"size": 2})
    assert reward(["p"], [PICTURE], include=[[{"class": "dog", "count": 2}]]) == [1.0]


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({}, "needs a column `include`, `exclude` or `metadata`"),
        ({"include": "dog"}, "column `include` has 'dog'; give a list"),
        ({"include": {"class": "dog"}}, "column `include` has {'class': 'dog'}"),
        ({"include": [{"count": 1}]}, "column `include` has {'count': 1}"),
        ({"include": [{"class": "dog", "count": 0}]}, "'count': 0"),
        ({"include": [{"class": "dog", "count": True}]}, "'count': True"),
        ({"include": [{"class": "dog", "color": 3}]}, "'color': 3"),
        ({"include": [{"class": "dog", "position": ["near", 0]}]}, "'near'"),
        ({"include": [{"class": "dog", "position": ["above", 0]}]}, "['above', 0]"),  # of itself
        ({"exclude": [7]}, "column `exclude` has 7"),
        ({"metadata": "[]"}, "column `metadata` has []; give a mapping"),
    ],
)
def test_wrong_columns_are_named_before_the_detector_is_asked(columns, part):
    with pytest.raises(ValueError, match=re.escape(part)):
        ObjectCheck(lambda *_: pytest.fail("asked"))(
            ["p"], [PICTURE], **{name: [own] for name, own in columns.items()}
        )


@pytest.mark.parametrize("found", [None, [], [[{"box": LEFT}]], [["dog"]]])
def test_a_detector_that_returns_something_else_is_named(found):
    with pytest.raises(ValueError, match="the detector must return a list of 1"):
        ObjectCheck(lambda *_: found)(["p"], [PICTURE], include=[[{"class": "dog"}]])


def test_a_relation_without_boxes_is_named():
    wish = [{"class": "dog"}, {"class": "cat", "position": ["above", 0]}]
    with pytest.raises(ValueError, match="needs their `box`"):
        ObjectCheck(lambda *_: [[{"class": "dog"}, {"class": "cat"}]])(["p"], [PICTURE], include=[wish])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"detector": "nowhere:f"}, "no module 'nowhere'"),
        ({"detector": 3}, "detector must be a function"),
        ({"detector": len, "detector_args": {"a": 1}}, "the detector is no class"),
        ({"detector": len, "partial": 1}, "partial must be true or false"),
        ({"detector": len, "threshold": 2}, "threshold must be a number from 0 to 1, got 2"),
        ({"detector": len, "batch_size": 0}, "batch_size"),
    ],
)
def test_bad_arguments_are_refused(arguments, part):
    with pytest.raises(ValueError, match=re.escape(part)):
        get_reward("object_check", **arguments)
