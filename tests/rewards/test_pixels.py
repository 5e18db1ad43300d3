"""``jpeg_size`` and ``colour``: values, ranges, rows they do not apply to."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from unigrpo.rewards import colour, get_reward, jpeg_size

from ..support.tiny_scorers import Broken


def noise(size=64, spread=256, seed=0):
    values = np.random.RandomState(seed).randint(0, spread, size=(size, size, 3), dtype=np.uint8)
    return Image.fromarray(values)


def halves(left, right):
    image = Image.new("RGB", (8, 4), left)
    image.paste(right, (4, 0, 8, 4))
    return image


@pytest.mark.smoke
@pytest.mark.parametrize("options", [{}, {"quality": 30}])
def test_jpeg_size_is_that_of_the_file(options):
    file = io.BytesIO()
    noise().save(file, format="JPEG", **{"quality": 95, **options})
    assert jpeg_size(["p"], [noise()], **options) == [len(file.getvalue()) / 1000]


def test_the_mode_of_an_image_does_not_matter():
    grey = noise().convert("L")
    assert jpeg_size(["p"] * 2, [grey, grey.convert("RGB")])[0] == jpeg_size(["p"], [grey.convert("RGB")])[0]
    assert jpeg_size(["p"], [noise().convert("RGBA")]) == jpeg_size(["p"], [noise()])


@pytest.mark.parametrize(
    ("image", "name", "share"),
    [
        (Image.new("RGB", (4, 4), "red"), "red", 1.0),
        (Image.new("RGB", (4, 4), "red"), "#ff0000", 1.0),
        (Image.new("RGB", (4, 4), "red"), "blue", 0.0),
        (halves("red", "blue"), "blue", 0.5),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 7)), "red", 1.0),
        (Image.new("L", (4, 4), 0), "black", 1.0),
        (Image.new("RGB", (4, 4), (155, 0, 0)), "red", 1.0),
        (Image.new("RGB", (4, 4), (154, 0, 0)), "red", 0.0),
        (Image.new("RGB", (4, 4), (195, 80, 0)), "red", 1.0),
        (Image.new("RGB", (4, 4), (195, 81, 0)), "red", 0.0),
    ],
)
def test_colour_is_the_share_of_near_pixels(image, name, share):
    assert colour(["p"], [image], colour=[name]) == [share]
    assert colour(["p"], [image], colour=name) == [share]


def test_the_tolerance():
    image = Image.new("RGB", (4, 4), (250, 0, 0))
    assert colour(["p"], [image], colour="red", tolerance=5) == [1.0]
    assert colour(["p"], [image], colour="red", tolerance=4.9) == [0.0]
    assert colour(["p"], [halves("black", "white")], colour="white", tolerance=442) == [1.0]


def test_the_column_goes_before_a_bound_argument():
    bound = get_reward("colour", colour="red")
    assert bound(["p"], [halves("red", "blue")]) == [0.5]
    assert bound(["p"], [Image.new("RGB", (4, 4), "blue")], colour=["blue"]) == [1.0]


def test_rows_without_an_image_or_a_colour_are_none():
    image = Image.new("RGB", (4, 4), "red")
    completions = [image, "text", image, [{"role": "assistant", "content": "a"}], None]
    assert colour(["p"] * 5, completions, colour=["red", "red", None, "red", "red"]) == [1.0, None, None, None, None]
    assert [score is None for score in jpeg_size(["p"] * 5, completions)] == [False, True, False, True, True]
    assert colour(["p"], ["text"]) == [None]


@pytest.mark.parametrize("reward", [jpeg_size, get_reward("colour", colour="red")])
def test_images_that_cannot_be_read_are_none_and_counted(reward):
    logged = {}
    images = [Broken(), Image.new("RGB", (4, 4), "red"), Image.new("RGB", (0, 4))]
    scores = reward(["p"] * 3, images, log_metric=logged.__setitem__)
    assert [score is None for score in scores] == [True, False, True]
    assert list(logged.values()) == [2.0] and next(iter(logged)).endswith("/failed")
    logged.clear()
    assert reward(["p"], ["text"], log_metric=logged.__setitem__) == [None] and not logged


def test_an_edit_is_compared_with_the_picture_that_came_in():
    grey, light = (Image.new("RGB", (6, 4), (level,) * 3) for level in (100, 151))
    wide = Image.new("L", (60, 40), 100)
    shown = [[grey], [grey, light], [wide], None, [grey], [Image.new("RGB", (0, 4))]]
    logged = {}
    scores = get_reward("pixel_similarity")(
        ["p"] * 6, [grey, light, grey, grey, "text", grey], images=shown, log_metric=logged.__setitem__
    )
    assert scores == [1.0, pytest.approx(0.8), 1.0, None, None, None] and logged == {"pixel_similarity/failed": 1.0}
    assert get_reward("pixel_similarity")(["p"], [grey]) == [None]


def test_an_image_too_large_for_a_jpeg_is_none():
    assert jpeg_size(["p"], [Image.new("RGB", (65_536, 1))]) == [None]


@pytest.mark.parametrize(
    ("reward", "name", "values"),
    [
        (jpeg_size, "quality", [0, 96, 50.0, True, "95"]),
        (get_reward("colour", colour="red"), "tolerance", [-1, float("nan"), float("inf"), "100", True]),
    ],
)
def test_bad_arguments(reward, name, values):
    for value in values:
        with pytest.raises(ValueError, match=name):
            reward(["p"], ["text"], **{name: value})


@pytest.mark.parametrize("name", ["redd", "#12", 7, ["red"]])
def test_a_colour_that_is_none(name):
    with pytest.raises(ValueError, match="CSS name"):
        colour(["p"], [noise()], colour=[name])


def test_images_without_any_colour_are_an_error():
    with pytest.raises(ValueError, match="`colour` column"):
        colour(["p"], [noise()])
    with pytest.raises(ValueError):
        colour(["p", "q"], [noise()] * 2, colour=["red"])
