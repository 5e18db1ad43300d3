"""The check of emoji pictures agrees with real ones, tells look-alikes apart, and knows a blur from a picture."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageFilter

from unigrpo.toy import emoji
from unigrpo.toy.emoji import NAMES, SPLITS, Scene, caption, render, some_scene
from unigrpo.toy.emoji_check import CLEAR, alike_picture, clear_picture, inspect, look_alikes, right_picture


def some(count: int, seed: int = 0) -> list[tuple[Scene, Image.Image]]:
    rng = np.random.default_rng(seed)
    drawn = [some_scene(SPLITS[index % 2], rng) for index in range(count)]
    return [(scene, render(scene, rng)) for scene in drawn]


def with_noise(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    noisy = np.asarray(image) + rng.normal(0, level, (48, 48, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def test_real_pictures_are_read_right_and_only_as_what_they_are():
    shown = some(200)
    assert np.mean([inspect(image).scene == scene for scene, image in shown]) >= 0.99
    assert all(clear_picture(image, caption(scene)) for scene, image in shown)
    for (scene, image), (other, _) in pairwise(shown):
        assert right_picture(image, caption(other)) == (scene == other)


def test_look_alikes_are_told_apart_under_noise_and_order_and_place_count():
    rng = np.random.default_rng(1)
    for name in NAMES:
        alike = look_alikes(name)
        assert name not in alike and len(set(alike)) == 3
        for relation in ("left of", "above"):
            image = with_noise(render(Scene(relation, name, alike[0]), rng), 25, rng)
            assert right_picture(image, caption(Scene(relation, name, alike[0])))
            for wrong in (Scene(relation, alike[0], name), Scene(relation, name, alike[1]), Scene("alone", name)):
                assert not right_picture(image, caption(wrong))
    assert "crying face" in look_alikes("happy face")


def test_among_look_alikes_more_is_right_but_neither_order_nor_a_stranger():
    rng = np.random.default_rng(2)
    for name in NAMES[::5]:
        near = look_alikes(name)[0]
        far = next(own for own in NAMES if own not in (name, near, *look_alikes(name), *look_alikes(near)))
        image = render(Scene("above", name, far), rng)
        assert alike_picture(image, caption(Scene("above", near, far)))
        assert alike_picture(image, caption(Scene("above", name, far)))
        assert not alike_picture(image, caption(Scene("above", far, name)))
        assert not alike_picture(image, caption(Scene("left of", name, far)))


@pytest.mark.parametrize(("spoilt", "clear"), [("blur", False), ("noise", True), ("faded", False)])
def test_an_error_tells_a_spoilt_picture_that_is_still_nearest(spoilt, clear):
    rng = np.random.default_rng(3)
    change = {
        "blur": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
        "noise": lambda image: with_noise(image, 10, rng),
        "faded": lambda image: Image.blend(image, Image.new("RGB", image.size, (245,) * 3), 0.35),
    }[spoilt]
    shown = [(scene, change(image)) for scene, image in some(60, 4)]
    assert np.mean([right_picture(image, caption(scene)) for scene, image in shown]) > 0.7
    found = np.mean([clear_picture(image, caption(scene)) for scene, image in shown])
    assert found > 0.95 if clear else found < 0.35


def test_the_error_is_the_mean_square_where_emoji_stand():
    scene = Scene("left of", "moon", "owl")
    image = render(scene, np.random.default_rng(0))
    assert inspect(image).error < 1e-4
    pixels = np.asarray(image).copy()
    pixels[24, 4] = 255 - pixels[24, 4]
    change = (np.asarray(image)[24, 4].astype(float) - pixels[24, 4]) / 127.5
    assert inspect(Image.fromarray(pixels)).error == pytest.approx((change**2).sum() / (2 * 24 * 24 * 3), abs=1e-4)
    pixels[:12] = 200  # No emoji stands there: it may cost the layout, but it is no error of the emoji.
    assert inspect(Image.fromarray(pixels)).error < 0.01


def test_an_empty_picture_is_clear_as_nothing():
    seen = inspect(Image.new("RGB", (48, 48), (round(255 * emoji.GROUND),) * 3))
    assert seen.error > CLEAR


def test_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(32, 32\).*\(48, 48\)"):
        inspect(Image.new("RGB", (32, 32)))


def test_the_check_knows_every_scene_of_the_world():
    rng = np.random.default_rng(5)
    for name in NAMES:
        for scene in (Scene("alone", name), Scene("two", name)):
            assert inspect(render(scene, rng)).scene == scene
    assert set(emoji.RELATIONS) == {inspect(image).scene.relation for _, image in some(60, 6)}
