"""Pictures to codes and back: the cache, sizes, transforms, and tokenizers that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from unigrpo.data import image_codes as codec_module
from unigrpo.data.image_codes import ImageCodec, sides
from unigrpo.data.pictures import fit_image, to_images, to_pixels

from ..support.images import tiny_tokenizer
from ..support.tiny import golden


pytestmark = pytest.mark.golden


class Counting:
    """A tokenizer that notes how many pictures of which size it encodes."""

    def __init__(self) -> None:
        self.inner, self.encoded = tiny_tokenizer(), []
        self.config, self.code_grid = self.inner.config, self.inner.code_grid
        self.device = self.inner.device

    def eval(self):
        return self

    def requires_grad_(self, _):
        return self

    def encode(self, pixels):
        self.encoded.append(tuple(pixels.shape))
        return self.inner.encode(pixels)

    def decode(self, codes, height, width):
        return self.inner.decode(codes, height, width)


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def codec(policy, counting) -> ImageCodec:
    return ImageCodec(counting, policy)


def picture(seed: int, width: int = 50, height: int = 40) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.smoke
def test_codes_are_the_references(policy):
    """The recorded image as a picture of 8 bits would round; its decode's codes are the tokenizer's own."""
    arrays, _ = golden("g5_magvit")
    tokenizer = tiny_tokenizer()
    pictures = to_images(arrays["image"])
    codes = ImageCodec(tokenizer, policy).encode(pictures, 64, ["squash"] * len(pictures))
    assert torch.equal(torch.stack(codes), tokenizer.encode(to_pixels(pictures)))
    assert (torch.stack(codes) == arrays["code"]).float().mean() > 0.9
    assert codes[0].dtype == torch.int64


def test_a_picture_is_encoded_once(codec, counting):
    first = codec.encode([picture(0), picture(1), picture(0)], 64, ["squash"] * 3)
    assert counting.encoded == [(2, 3, 64, 64)]
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    again = codec.encode([picture(1), picture(0), picture(2)], 64, ["squash"] * 3)
    assert counting.encoded == [(2, 3, 64, 64), (1, 3, 64, 64)]
    assert torch.equal(again[0], first[1]) and torch.equal(again[1], first[0])
    codec.encode([picture(2)], [64, 64], ["squash"])
    assert len(counting.encoded) == 2


def test_another_transform_or_size_is_encoded_anew(codec, counting):
    one = picture(0)
    kinds = [(64, "squash"), (64, "crop"), (64, "pad"), (32, "squash"), ([32, 64], "squash"), ([64, 32], "squash")]
    codes = [codec.encode([one], size, [transform])[0] for size, transform in kinds]
    assert len(counting.encoded) == len(kinds)
    for (size, transform), own in zip(kinds, codes, strict=True):
        fitted = fit_image(one, *sides(size), transform)
        assert torch.equal(own, counting.inner.encode(to_pixels([fitted]))[0])
        assert torch.equal(own, codec.encode([one], size, [transform])[0])
    assert len({tuple(own.tolist()) for own in codes}) == len(kinds)
    assert len(counting.encoded) == len(kinds)


def test_pictures_of_equal_bytes_and_other_shape_are_other_pictures(codec, counting):
    codec.encode([Image.new("RGB", (32, 16), "red"), Image.new("RGB", (16, 32), "red")], 32, ["pad", "pad"])
    assert counting.encoded == [(2, 3, 32, 32)]


def test_the_oldest_pictures_leave_the_cache(codec, counting, monkeypatch):
    monkeypatch.setattr(codec_module, "CACHED", 2)
    for seed in (0, 1, 0, 2, 0, 1):
        codec.encode([picture(seed)], 32, ["squash"])
    # 0, 1 and 2 are new; 1 was used longest ago when 2 came, and is new again at the end.
    assert len(counting.encoded) == 4
    assert len(codec.encode([picture(seed) for seed in range(5)], 32, ["squash"] * 5)) == 5


@pytest.mark.parametrize(("size", "count"), [(64, 16), ([32, 64], 8), ((64, 32), 8), ([48], 9), (16, 1)])
def test_sizes_are_height_by_width(codec, size, count):
    """Codes fill the grid row by row, and decode to RGB pictures of the configured size."""
    height, width = sides(size)
    codes = codec.encode([picture(0), picture(1)], size, ["squash"] * 2)
    assert codec.count(size) == count
    assert [own.shape for own in codes] == [(count,)] * 2
    decoded = codec.decode(codes, size)
    assert [(one.mode, one.size) for one in decoded] == [("RGB", (width, height))] * 2
    pixels = codec.tokenizer.decode(torch.stack(codes), height, width)
    assert [one.tobytes() for one in decoded] == [one.tobytes() for one in to_images(pixels)]


@pytest.mark.parametrize("size", [40, [64, 40], [8, 64]])
def test_a_size_that_codes_do_not_tile_is_named(codec, size):
    with pytest.raises(ValueError) as caught:
        codec.count(size)
    message = str(caught.value)
    assert message.startswith(f"image_size={size}: ")
    assert "must be a multiple of 16" in message


def test_another_codebook_is_refused(policy):
    tokenizer = tiny_tokenizer()
    tokenizer.config.code_bits, tokenizer.config.name_or_path = 7, "some/tokenizer"
    size = tokenizer.config.codebook_size
    with pytest.raises(
        ValueError, match=rf"'some/tokenizer' has {size} codes, the policy writes 64: use the tokenizer"
    ):
        ImageCodec(tokenizer, policy)


def test_the_tokenizer_is_frozen(policy):
    tokenizer = tiny_tokenizer().train()
    ImageCodec(tokenizer, policy)
    assert not tokenizer.training
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


CARD = "cpu:0"
"""A device with a name of its own that every machine has."""


class Moved(Counting):
    """A tokenizer that notes where it is moved and when it works."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def to(self, device):
        self.seen.append(str(device))
        return self

    def encode(self, pixels):
        self.seen.append("encodes")
        return super().encode(pixels)

    def decode(self, codes, height, width):
        self.seen.append("decodes")
        return super().decode(codes, height, width)


def test_an_offloaded_tokenizer_is_on_its_device_while_it_works(policy):
    """Codes and pictures are the same; a picture whose codes are kept moves nothing."""
    plain, moved = ImageCodec(Counting(), policy), Moved()
    codec = ImageCodec(moved, policy, offload=True).to(CARD)
    assert moved.seen == ["cpu"] and codec.device == CARD
    for work in (["cpu", CARD, "encodes", "cpu"], ["cpu", CARD, "encodes", "cpu"]):
        codes = codec.encode([picture(0), picture(1)], 64, ["crop", "pad"])
        assert moved.seen == work
        assert all(map(torch.equal, codes, plain.encode([picture(0), picture(1)], 64, ["crop", "pad"])))
    moved.seen.clear()
    pictures = codec.decode(codes, 64)
    assert moved.seen == [CARD, "decodes", "cpu"]
    assert [own.tobytes() for own in pictures] == [own.tobytes() for own in plain.decode(codes, 64)]
    with pytest.raises(ValueError):
        codec.decode(codes, 128)
    assert moved.seen[-1] == "cpu"


def test_a_tokenizer_is_counted_without_weights():
    real = tiny_tokenizer()
    outline, call = codec_module.tokenizer_without_weights(real.config, 64, 32)
    shapes = {name: tuple(own.shape) for name, own in real.state_dict().items()}
    assert {name: tuple(own.shape) for name, own in outline.state_dict().items()} == shapes
    assert all(own.is_meta for own in outline.parameters()) and callable(call)
