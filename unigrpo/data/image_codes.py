"""Pictures to codes and back, beside the policy: the image tokenizer with the sizes and the cache of a run."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import CheckpointError, SourceError
from ..models.amused import AmusedVQ, AmusedVQConfig, found_config
from ..models.base import DiffusionPolicy
from ..models.hub import finding
from ..models.loading import load_module, reading
from ..models.magvit import MagvitV2, MagvitV2Config
from ..models.magvit.modeling import images_at_once
from .pictures import fit_image, to_images, to_pixels


CACHED = 8192
"""Pictures whose codes are kept, more than any shipped set has; at 1024 codes each they take 64 MB."""


def sides(image_size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """``(height, width)`` of a configured size."""
    return (image_size, image_size) if isinstance(image_size, int) else tuple(image_size * 2)[:2]


class PictureSizes:
    """What follows from how many codes a picture of a size has."""

    def grid(self, image_size: int | list[int]) -> tuple[int, int]:
        """Rows and columns of the codes of a picture of that size."""
        raise NotImplementedError

    def count(self, image_size: int | list[int]) -> int:
        """Codes of a picture of that size."""
        return math.prod(self.grid(image_size))

    def shown(self, row: dict[str, Any], codes: Tensor | None, image_size: int | list[int]) -> dict[str, Any]:
        """The row with the codes ``[N]`` of its picture, as ``policy.encode`` reads them; None stands for any codes."""
        codes = torch.zeros(self.count(image_size), dtype=torch.int64) if codes is None else codes
        return {**row, "image_codes": codes, "image_grid": self.grid(image_size)}


class ImageCodec(PictureSizes):
    """An image tokenizer, frozen and in eval mode.

    Args:
        tokenizer: a ``MagvitV2``, an ``AmusedVQ``, or a module with their ``encode``, ``decode``, ``code_grid`` and
            ``config.codebook_size``.
        offload: the tokenizer stays on the CPU between its uses and is moved for each.

    Raises:
        ValueError: the tokenizer's codebook is not the policy's.
    """

    def __init__(self, tokenizer: Any, policy: DiffusionPolicy, offload: bool = False) -> None:
        self.tokenizer, self.name = tokenizer.eval().requires_grad_(False), tokenizer_name(tokenizer)
        self.offload = offload
        self.device: torch.device | str = getattr(tokenizer, "device", "cpu")
        self._codes: OrderedDict[bytes, Tensor] = OrderedDict()
        size = tokenizer.config.codebook_size
        if size != policy.codebook_size:
            raise ValueError(
                f"image_tokenizer={self.name!r} has {size} codes, the policy writes {policy.codebook_size}: use the "
                "tokenizer that the policy was trained with"
            )

    def to(self, device: torch.device | str) -> ImageCodec:
        """Moves the tokenizer, or where it is offloaded only its work."""
        self.tokenizer.to("cpu" if self.offload else device)
        self.device = device
        return self

    @contextmanager
    def _at_work(self) -> Iterator[Any]:
        """The tokenizer, on its device."""
        if not self.offload:
            yield self.tokenizer
            return
        self.tokenizer.to(self.device)
        try:
            yield self.tokenizer
        finally:
            self.tokenizer.to("cpu")

    def grid(self, image_size: int | list[int]) -> tuple[int, int]:
        """As in ``PictureSizes``; raises ``ValueError`` where a side is not a multiple of the tokenizer's."""
        try:
            return self.tokenizer.code_grid(*sides(image_size))
        except ValueError as error:
            raise ValueError(f"image_size={image_size}: {error}") from error

    def encode(self, images: list[Image.Image], image_size: int | list[int], transforms: list[str]) -> list[Tensor]:
        """Codes ``[N]`` int64 on the CPU of each RGB picture, brought to ``image_size`` by its transform."""
        keys = [_key(image, image_size, transform) for image, transform in zip(images, transforms, strict=True)]
        fresh = {key: place for place, key in enumerate(keys) if key not in self._codes}
        found = {key: self._codes[key] for key in keys if key not in fresh}
        if fresh:
            fitted = [fit_image(images[place], *sides(image_size), transforms[place]) for place in fresh.values()]
            with self._at_work() as tokenizer:
                codes = tokenizer.encode(to_pixels(fitted).to(self.device)).cpu()
            found.update(zip(fresh, codes, strict=True))
        for key in keys:
            self._codes[key] = found[key]
            self._codes.move_to_end(key)
        while len(self._codes) > CACHED:
            self._codes.popitem(last=False)
        return [found[key] for key in keys]

    def decode(self, codes: list[Tensor], image_size: int | list[int]) -> list[Image.Image]:
        """RGB pictures of codes ``[N]``."""
        with self._at_work() as tokenizer:
            return to_images(tokenizer.decode(torch.stack(codes).to(self.device), *sides(image_size)).cpu())


def _key(image: Image.Image, image_size: Any, transform: str) -> bytes:
    digest = hashlib.blake2b(image.tobytes(), digest_size=16)
    digest.update(repr((image.size, sides(image_size), transform)).encode())
    return digest.digest()


TokenizerConfig = MagvitV2Config | AmusedVQConfig


def tokenizer_config(path: str) -> TokenizerConfig:
    """The configuration of an image tokenizer, an id or a folder; of a checkpoint that holds one that of its folder vqvae.

    Raises:
        ValueError: it cannot be read.
        SourceError: there is nothing at ``path``, or no way to it.
    """
    with reading(f"image tokenizer {path!r}"), finding(path, f"image tokenizer {path!r}"):
        amused = found_config(path)
        return MagvitV2Config.from_pretrained(path) if amused is None else amused[0]


def load_tokenizer(tokenizer: Any) -> Any:
    """The module of an id, a path or a module.

    Raises:
        ValueError: nothing to load there, no image tokenizer, or files that are damaged or would run code.
    """
    if not isinstance(tokenizer, str):
        return tokenizer
    try:
        with reading(f"image tokenizer {tokenizer!r}"):
            amused = found_config(tokenizer) is not None
        return AmusedVQ.from_pretrained(tokenizer) if amused else load_module(MagvitV2, tokenizer)
    except CheckpointError:
        raise
    except OSError as error:
        raise SourceError(
            f"image_tokenizer={tokenizer!r} cannot be loaded ({str(error).splitlines()[0]}); give a hub id, a folder with "
            "config.json and weights, or the module"
        ) from error


def tokenizer_without_weights(
    config: TokenizerConfig, height: int, width: int, draws: bool = True
) -> tuple[MagvitV2 | AmusedVQ, Callable[[], Any]]:
    """An image tokenizer on the meta device, and a call that reads, and where it ``draws`` draws, as many pictures as it takes at once, to count
    what they take.
    """
    count, grid = images_at_once(height, width), (height // config.factor, width // config.factor)
    with torch.device("meta"):
        tokenizer = AmusedVQ(config) if isinstance(config, AmusedVQConfig) else MagvitV2(config)

    def read_and_draw() -> None:
        tokenizer(torch.zeros(count, 3, height, width))
        if draws and isinstance(tokenizer, AmusedVQ):
            tokenizer.draw(torch.zeros(count, math.prod(grid), dtype=torch.int64), *grid)
        elif draws:
            tokenizer.decoder(torch.zeros(count, tokenizer.config.code_bits, *grid))

    return tokenizer, read_and_draw


def tokenizer_name(tokenizer: Any) -> str | None:
    """Where an image tokenizer came from, for logs and saved arguments."""
    if tokenizer is None or isinstance(tokenizer, str):
        return tokenizer
    return getattr(getattr(tokenizer, "config", None), "name_or_path", "") or type(tokenizer).__name__
