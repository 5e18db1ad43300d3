"""Pictures in and out: every stored form gives the same pixels; what is no picture says where and what to do."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from unigrpo.data.pictures import MAX_PIXELS, MIN_SIDE, fit_image, load_image, to_images, to_pixels

from ..support.pictures import encoded, picture, png_header


WHERE = "train_dataset[3]['image']"


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.mode == b.mode == "RGB" and a.size == b.size and a.tobytes() == b.tobytes()


def refused(value) -> str:
    with pytest.raises(ValueError) as raised:
        load_image(value, WHERE)
    message = str(raised.value)
    assert message.startswith(f"{WHERE}: ")
    return message


@pytest.mark.smoke
def test_every_form_gives_the_same_picture(tmp_path):
    image = picture()
    data, path = encoded(image), tmp_path / "a.png"
    path.write_bytes(data)
    forms = [
        *(image, str(path), path, data, bytearray(data), np.asarray(image)),
        *({"bytes": data, "path": None}, {"bytes": data, "path": "gone.png"}, {"bytes": None, "path": str(path)}),
    ]
    for form in forms:
        assert same(load_image(form, WHERE), image)


def test_the_picture_is_a_copy():
    image = picture()
    load_image(image, WHERE).putpixel((0, 0), (1, 2, 3))
    assert same(image, picture())
    values = np.asarray(image).copy()
    loaded = load_image(values, WHERE)
    values[:] = 0
    assert same(loaded, image)


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("LA", (0, 0), (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ],
)
def test_other_modes_are_converted_and_transparency_is_laid_over_white(mode, colour, seen):
    image = Image.new(mode, (8, 8), colour)
    assert load_image(image, WHERE).getpixel((0, 0)) == seen
    if mode == "RGBA":
        assert load_image(encoded(image), WHERE).getpixel((0, 0)) == seen


def test_palettes_are_looked_up_with_and_without_transparency():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert load_image(encoded(image), WHERE).getpixel((0, 0)) == (10, 200, 30)
    assert load_image(encoded(image, transparency=1), WHERE).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_to_eight():
    values = np.array([[0, 128, 129, 257, 32768, 65278, 65535, 40]] * 8, dtype=np.uint16)
    data = encoded(Image.fromarray(values))
    row = np.asarray(load_image(data, WHERE))[0]
    assert row[:, 0].tolist() == [0, 0, 1, 1, 128, 254, 255, 0]
    assert (row[:, 0] == row[:, 2]).all()


def test_modes_without_a_range_are_refused():
    assert "8 or 16 bits" in refused(Image.new("I", (8, 8), 70_000))
    assert "mode 'F'" in refused(Image.new("F", (8, 8), 0.5))


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (16, 8), "black")
    image.paste((255, 0, 0), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = load_image(encoded(image, exif=exif), WHERE)
    assert upright.size == (8, 16)
    assert upright.getpixel((4, 2)) == (255, 0, 0) and upright.getpixel((4, 12)) == (0, 0, 0)


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data, WHERE).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_files_are_refused(format):
    data = encoded(picture(64, 48), format)
    for cut in (0, 3, len(data) // 2):
        refused(data[:cut])


def test_every_single_damaged_byte_is_read_or_refused():
    data = encoded(picture(), "PNG")
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 0xFF
        try:
            assert load_image(bytes(broken), WHERE).mode == "RGB"
        except ValueError as error:
            assert str(error).startswith(WHERE)


def test_what_is_no_picture_is_refused(tmp_path):
    page = tmp_path / "a.png"
    page.write_text("hello")
    for words, values in {
        "not an image file": [b"<html>404</html>", page],
        "no file": [tmp_path / "gone.png", str(tmp_path)],
        "'bytes' nor 'path'": [{"bytes": None, "path": None}, {"url": "x"}],
        "NoneType": [None],
        "int": [7],
        "uint8 values 0-255": [
            *(np.zeros((16, 16), np.uint8), np.zeros((16, 16, 4), np.uint8)),
            *(np.zeros((16, 16, 3)), np.zeros((3, 16, 16), np.uint8)),
        ],
    }.items():
        assert [value for value in values if words not in refused(value)] == []


def test_placeholders_are_refused():
    for size in ((1, 1), (MIN_SIDE - 1, 64), (64, MIN_SIDE - 1)):
        image = Image.new("RGB", size)
        for form in (image, encoded(image), np.asarray(image)):
            assert f"at least {MIN_SIDE}" in refused(form)
    assert load_image(Image.new("RGB", (MIN_SIDE, MIN_SIDE)), WHERE).size == (MIN_SIDE, MIN_SIDE)


@pytest.mark.parametrize("side", [9_000, 10_000, 20_000, 60_000])
@pytest.mark.parametrize("strict", [False, True], ids=["warnings", "errors"])
def test_giants_are_refused_before_their_pixels_are_decoded(side, strict, recwarn):
    import warnings

    if strict:
        warnings.simplefilter("error")
    message = refused(png_header(side, side))
    assert f"{MAX_PIXELS:,} pixels" in message and re.search("shrink", message)


@pytest.mark.parametrize("transform", ["squash", "crop", "pad"])
def test_every_transform_gives_the_size_and_leaves_the_right_one_alone(transform):
    image = picture(40, 20)
    for height, width in ((16, 16), (8, 24), (24, 8), (20, 40), (33, 47)):
        fitted = fit_image(image, height, width, transform)
        assert fitted.size == (width, height)
        if transform == "squash":
            assert same(fitted, image.resize((width, height), Image.BICUBIC))
    assert same(fit_image(image, 20, 40, transform), image)


def thirds() -> Image.Image:
    image = Image.new("RGB", (48, 16), "red")
    image.paste((0, 255, 0), (16, 0, 32, 16))
    return image


def test_crop_keeps_the_centre():
    assert same(fit_image(thirds(), 16, 16, "crop"), Image.new("RGB", (16, 16), (0, 255, 0)))
    assert same(fit_image(thirds().rotate(90, expand=True), 16, 16, "crop"), Image.new("RGB", (16, 16), (0, 255, 0)))


def test_pad_keeps_everything_on_white():
    padded = np.asarray(fit_image(thirds(), 48, 48, "pad"))
    assert (padded[:16] == 255).all() and (padded[32:] == 255).all()
    assert (padded[16:32] == np.asarray(thirds())).all()


def test_pixels_and_back_for_every_byte():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([values, values[::-1], values.T], axis=2))
    pixels = to_pixels([image, image])
    assert pixels.shape == (2, 3, 16, 16) and pixels.dtype == torch.float32
    assert pixels[0, 0, 0, 0] == -1 and pixels[0, 0, -1, -1] == 1
    assert pixels[0, 0, 7, 15] == pytest.approx(127 / 127.5 - 1, abs=1e-6)
    assert all(same(one, image) for one in to_images(pixels))


def test_output_is_clamped_and_rounded():
    levels = torch.tensor([-3.0, -1.0, 0.0, 1.4 / 127.5 - 1, 1.6 / 127.5 - 1, 1.0, 9.0])
    (image,) = to_images(levels.repeat(1, 3, 1, 1))
    assert np.asarray(image)[0, :, 1].tolist() == [0, 0, 128, 1, 2, 255, 255]
    assert same(to_images(levels.double().repeat(1, 3, 1, 1))[0], image)


def test_unusable_tensors_and_images_are_refused():
    with pytest.raises(ValueError, match="finite"):
        to_images(torch.full((1, 3, 8, 8), torch.nan))
    for images in ([], [picture(), picture(8, 8)], [Image.new("L", (8, 8))]):
        with pytest.raises(ValueError, match="RGB images of one size"):
            to_pixels(images)
