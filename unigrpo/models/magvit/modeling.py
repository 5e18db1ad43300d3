"""MAGVIT-v2, the image tokenizer of MMaDA and Show-o (lookup-free quantisation, arXiv 2310.05737)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from ..checkpoint_files import check_loaded
from .configuration import MagvitV2Config
from .layers import Decoder, Encoder, LookupFreeQuantizer


CHUNK_PIXELS = 4 * 512 * 512
"""Pixels processed at once: the largest activation of a 512-pixel image is 134 MB in fp32."""


class MagvitV2(PreTrainedModel):
    """Images to codes and back. Loads showlab/magvitv2: 382 keys.

    Weights stay fp32, and encoding is fp32 whatever autocast and TF32 settings say: bits are signs, and lower precision
    flips those near 0.
    """

    config_class = MagvitV2Config
    base_model_prefix = ""
    main_input_name = "pixels"

    def __init__(self, config: MagvitV2Config) -> None:
        super().__init__(config)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = LookupFreeQuantizer(config.code_bits)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Layers keep torch's own initialisation."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> MagvitV2:
        """As in transformers, in fp32 unless ``dtype`` says otherwise.

        Raises:
            CheckpointError: the checkpoint lacks weights, or has others.
        """
        wanted_info = kwargs.pop("output_loading_info", False)
        kwargs = {"dtype": torch.float32, **kwargs}
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        if not wanted_info:
            check_loaded(f"image tokenizer {str(pretrained_model_name_or_path)!r}", info)
        model.eval()
        return (model, info) if wanted_info else model

    @property
    def factor(self) -> int:
        """Pixels along one side of a code."""
        return self.config.factor

    def code_grid(self, height: int, width: int) -> tuple[int, int]:
        """Codes along each side of a ``height x width`` image.

        Raises:
            ValueError: a side is not a multiple of ``factor``.
        """
        for name, side in (("height", height), ("width", width)):
            if side < self.factor or side % self.factor:
                raise ValueError(f"image {name}={side} must be a multiple of {self.factor} pixels, the side of a code")
        return height // self.factor, width // self.factor

    def forward(self, pixels: Tensor) -> Tensor:
        """Code logits ``[B, bits, h, w]`` before the sign, with gradient."""
        with torch.autocast(pixels.device.type, enabled=False), without_tf32(pixels.device):
            return self.encoder(pixels.to(self.dtype))

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B n"]:
        """Codes in ``[0, codebook_size)``, row-major, of pixels in [-1, 1].

        Raises:
            ValueError: a side is not a multiple of ``factor``.
        """
        height, width = pixels.shape[-2:]
        self.code_grid(height, width)
        parts = pixels.split(images_at_once(height, width))
        return torch.cat([self.quantize.codes(self(part.to(self.device))) for part in parts])

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "B n"], height: int, width: int) -> Float[Tensor, "B 3 H W"]:
        """Pixels, about [-1, 1] but not clipped, of ``height x width`` pixel images.

        Raises:
            ValueError: a side is not a multiple of ``factor``, the count of codes does not fit, or a code is none.
        """
        rows, columns = self.code_grid(height, width)
        if codes.shape[1] != rows * columns:
            raise ValueError(
                f"{codes.shape[1]} codes do not fill an image of {height} x {width} pixels, which has {rows * columns}"
            )
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < self.config.codebook_size):
            raise ValueError(
                f"codes lie in [{int(codes.min())}, {int(codes.max())}], outside [0, {self.config.codebook_size})"
            )
        pixels = []
        with torch.autocast(self.device.type, enabled=False):
            for part in codes.to(self.device).split(images_at_once(height, width)):
                signs = self.quantize.signs(part).to(self.dtype).mT.unflatten(2, (rows, columns))
                pixels.append(self.decoder(signs))
        return torch.cat(pixels).float()


@contextmanager
def without_tf32(device: torch.device) -> Iterator[None]:
    """Convolutions of the block in full fp32; cuDNN would round their inputs to ten bits by default."""
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    settings = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    with cudnn.flags(**settings, allow_tf32=False):
        yield


def images_at_once(height: int, width: int) -> int:
    """How many images of a size make a chunk, at least one."""
    return max(CHUNK_PIXELS // (height * width), 1)
