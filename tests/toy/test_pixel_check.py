"""The pixel checker reads clean pictures without error, and refuses what is no shape."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unigrpo.toy.pixel_check import Seen, inspect, matches, right_picture
from unigrpo.toy.shapes import COLOURS, SHAPES, SPECS, Spec, problems, render


@pytest.mark.parametrize("seed", range(2))
def test_every_clean_picture_is_read_right(seed):
    rng = np.random.default_rng(seed)
    wrong = [
        (spec, seen)
        for spec in SPECS
        if (seen := inspect(render(spec, rng))) != Seen(spec.colour, spec.shape, spec.size, spec.position)
    ]
    assert wrong == []


def test_judges_compare_with_the_row():
    rng = np.random.default_rng(0)
    for row in problems("test"):
        image = render(Spec(row["size"], row["colour"], row["shape"], row["position"]), rng)
        centred = render(Spec("small", row["colour"], row["shape"], "center"), rng)
        assert right_picture(image, row["solution"])
        assert right_picture(centred, row["solution"]) == (row["position"] == "center")
        for other in problems("test"):
            assert right_picture(image, other["solution"]) == (other["solution"] == row["solution"])
        for colour in COLOURS:
            for shape in SHAPES:
                assert matches(image, colour, shape) == ((colour, shape) == (row["colour"], row["shape"]))


@pytest.mark.parametrize("rows, columns", [((4, 28), (14, 20)), ((14, 20), (4, 28)), ((6, 26, 2), (6, 26, 2))])
def test_a_bar_and_a_ragged_outline_are_no_shape(rows, columns):
    pixels = np.full((32, 32, 3), 10, dtype=np.uint8)
    assert inspect(Image.fromarray(pixels)) == Seen()
    pixels[10:14, 10:16] = 240  # Too few pixels to show anything.
    assert inspect(Image.fromarray(pixels)) == Seen()
    pixels[:] = 10
    pixels[slice(*rows), slice(*columns)] = np.array(COLOURS["red"]) * 255
    seen = inspect(Image.fromarray(pixels))
    assert (seen.colour, seen.shape, seen.valid) == ("red", None, False)


def test_an_unknown_colour_has_a_shape_only():
    pixels = np.full((32, 32, 3), 10, dtype=np.uint8)
    pixels[8:20, 8:20] = (250, 130, 160)
    seen = inspect(Image.fromarray(pixels))
    assert (seen.colour, seen.shape, seen.valid) == (None, "square", True)


def test_a_shape_upside_down_is_no_triangle():
    image = render(Spec("large", "blue", "triangle", "center"), np.random.default_rng(0))
    assert inspect(image).shape == "triangle"
    assert inspect(image.transpose(Image.FLIP_TOP_BOTTOM)).shape != "triangle"


def test_noise_does_not_change_what_is_seen():
    rng = np.random.default_rng(0)
    for spec in SPECS[::7]:
        noisy = np.asarray(render(spec, rng)) + rng.normal(0, 15, (32, 32, 3))
        seen = inspect(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
        assert (seen.colour, seen.shape) == (spec.colour, spec.shape)


def test_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(64, 64\).*\(32, 32\)"):
        inspect(Image.new("RGB", (64, 64)))
