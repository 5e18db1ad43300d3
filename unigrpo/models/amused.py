"""aMUSEd's image tokenizer (arXiv 2401.01808), the VQModel of diffusers: 8192 codes of 16 pixels, that of Lumina-DiMOO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..errors import CheckpointError
from .checkpoint_files import FEW_LAYERS, check_loaded, check_numbers, hub_file, reading
from .magvit.modeling import images_at_once, without_tf32


FOLDERS = ("", "vqvae/")
"""Where the tokenizer lies in a checkpoint: by itself, or beside the model that it belongs to."""

MAX_STAGES = 16
"""Resolutions, and blocks of each: sixteen halvings make a code of a whole picture."""

WEIGHTS = "diffusion_pytorch_model.safetensors"


class AmusedVQConfig(PreTrainedConfig):
    """The sizes of a ``diffusers.VQModel``; the defaults are aMUSEd's, 16 pixels a code.

    Args:
        block_out_channels: width of each resolution, finest first.
        layers_per_block: residual blocks of each.
        latent_channels: width of a code.
        num_vq_embeddings: number of codes.
        vq_model: further arguments of ``VQModel``.

    Raises:
        ValueError: more resolutions or blocks than any picture needs.
    """

    model_type = "amused_vq"

    def __init__(
        self,
        block_out_channels: tuple[int, ...] | list[int] = (128, 256, 256, 512, 768),
        layers_per_block: int = 2,
        latent_channels: int = 64,
        num_vq_embeddings: int = 8192,
        vq_model: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not 1 <= len(block_out_channels) <= MAX_STAGES or not 1 <= layers_per_block <= MAX_STAGES:
            raise ValueError(
                f"block_out_channels={block_out_channels} and layers_per_block={layers_per_block}: give 1 to {MAX_STAGES} resolutions, "
                "and as many blocks of each"
            )
        self.block_out_channels, self.layers_per_block = list(block_out_channels), layers_per_block
        self.latent_channels, self.num_vq_embeddings = latent_channels, num_vq_embeddings
        usual = {"mid_block_add_attention": False, "lookup_from_codebook": True, "force_upcast": True}
        self.vq_model = usual if vq_model is None else dict(vq_model)
        super().__init__(**kwargs)

    @property
    def codebook_size(self) -> int:
        return self.num_vq_embeddings

    @property
    def factor(self) -> int:
        """Pixels along one side of a code."""
        return 2 ** (len(self.block_out_channels) - 1)

    def build(self) -> Any:
        """A ``VQModel`` of these sizes, its weights as diffusers draws them.

        Raises:
            ValueError: diffusers is not installed.
        """
        try:
            from diffusers import VQModel
        except ImportError as error:
            raise ValueError(
                f"the image tokenizer {self.name_or_path or 'of aMUSEd'} is a model of diffusers, which cannot be imported "
                f"({error}): pip install 'unigrpo[lumina]'"
            ) from error
        kinds = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
        blocks = {name: (kind,) * len(self.block_out_channels) for name, kind in kinds.items()}
        named = {name: getattr(self, name) for name in SIZES}
        return VQModel(**{**blocks, **named, **self.vq_model})


SIZES = ("block_out_channels", "layers_per_block", "latent_channels", "num_vq_embeddings")


def found_config(path: str) -> tuple[AmusedVQConfig, str] | None:
    """The configuration of the ``VQModel`` at an id or a folder, and the folder in it; None where there is none."""
    for folder in FOLDERS:
        file = hub_file(path, f"{folder}config.json")
        said = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
        if said.get("_class_name") == "VQModel":
            sizes = {name: said[name] for name in SIZES if name in said}
            rest = {name: value for name, value in said.items() if name not in SIZES and not name.startswith("_")}
            return AmusedVQConfig(**sizes, vq_model=rest, name_or_path=str(path)), folder
        if said.get("model_type") == "magvitv2":
            return None
    return None


def _differences(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, list]:
    """What ``check_loaded`` reads."""
    shapes = [(name, value.shape, wanted[name].shape) for name, value in weights.items() if name in wanted]
    return {
        "missing_keys": sorted(wanted.keys() - weights.keys()),
        "unexpected_keys": sorted(weights.keys() - wanted.keys()),
        "mismatched_keys": [own for own in shapes if own[1] != own[2]],
    }


class AmusedVQ(nn.Module):
    """Images to codes and back, through a ``VQModel`` of diffusers. As ``MagvitV2``, in fp32 whatever autocast and TF32 settings say.

    Args:
        config: its sizes.
        model: the ``VQModel``; None = a fresh one.
    """

    def __init__(self, config: AmusedVQConfig, model: Any = None) -> None:
        super().__init__()
        self.config, self.model = config, config.build() if model is None else model

    @classmethod
    def from_pretrained(cls, path: str) -> AmusedVQ:
        """That of an id or a folder, or of its ``vqvae`` folder, in fp32 and eval mode.

        Raises:
            CheckpointError: weights are missing, or are others.
            ValueError: diffusers is not installed, or there is no ``VQModel``.
        """
        found = found_config(path)
        if found is None:
            raise ValueError(f"image tokenizer {path!r}: no VQModel of diffusers lies there, nor in its folder vqvae")
        config, folder = found
        file, what = hub_file(path, folder + WEIGHTS), f"image tokenizer {path!r}"
        if file is None:
            raise CheckpointError(f"{what} lacks {folder + WEIGHTS}, its weights")
        with reading(what):
            weights = load_file(file)
            check_numbers(config.to_dict(), what, max(len(weights), FEW_LAYERS))
            with torch.device("meta"):
                own = cls(config)
            check_loaded(what, _differences(weights, own.model.state_dict()))
            own.model.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
        return own.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """As diffusers saves it."""
        self.model.save_pretrained(folder)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def code_grid(self, height: int, width: int) -> tuple[int, int]:
        """Codes along each side of a ``height x width`` image.

        Raises:
            ValueError: a side is not a multiple of ``config.factor``.
        """
        factor = self.config.factor
        for name, side in (("height", height), ("width", width)):
            if side < factor or side % factor:
                raise ValueError(f"image {name}={side} must be a multiple of {factor} pixels, the side of a code")
        return height // factor, width // factor

    def forward(self, pixels: Tensor) -> Tensor:
        """What is quantised, ``[B, c, h, w]``, of pixels in [-1, 1]; the model itself reads [0, 1]."""
        with torch.autocast(pixels.device.type, enabled=False), without_tf32(pixels.device):
            return self.model.encode(pixels.float().add(1).div(2)).latents

    def draw(self, codes: Tensor, rows: int, columns: int) -> Tensor:
        """Pixels in about [-1, 1] of codes ``[B, rows * columns]``."""
        shape = (len(codes), rows, columns, self.config.latent_channels)
        with torch.autocast(codes.device.type, enabled=False), without_tf32(codes.device):
            if not self.model.config.lookup_from_codebook:
                codes = self.model.quantize.get_codebook_entry(codes.flatten(), shape)
                return self.model.decode(codes, force_not_quantize=True).sample.mul(2).sub(1)
            return self.model.decode(codes.flatten(), force_not_quantize=True, shape=shape).sample.mul(2).sub(1)

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B n"]:
        """Codes in ``[0, codebook_size)``, row-major, of pixels in [-1, 1].

        Raises:
            ValueError: a side is not a multiple of ``config.factor``.
        """
        self.code_grid(*pixels.shape[-2:])
        found = []
        for part in pixels.split(images_at_once(*pixels.shape[-2:])):
            _, _, (_, _, codes) = self.model.quantize(self(part.to(self.device)))
            found.append(codes.reshape(len(part), -1))
        return torch.cat(found)

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "B n"], height: int, width: int) -> Float[Tensor, "B 3 H W"]:
        """Pixels, about [-1, 1] but not clipped, of ``height x width`` pixel images.

        Raises:
            ValueError: a side is not a multiple of ``config.factor``, the count of codes does not fit, or a code is none.
        """
        grid = self.code_grid(height, width)
        if codes.shape[1] != grid[0] * grid[1]:
            raise ValueError(
                f"{codes.shape[1]} codes do not fill an image of {height} x {width} pixels, which has {grid[0] * grid[1]}"
            )
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < self.config.codebook_size):
            raise ValueError(
                f"codes lie in [{int(codes.min())}, {int(codes.max())}], outside [0, {self.config.codebook_size})"
            )
        parts = codes.to(self.device).split(images_at_once(height, width))
        return torch.cat([self.draw(part, *grid) for part in parts]).float()
