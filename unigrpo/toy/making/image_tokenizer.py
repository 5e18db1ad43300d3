"""Makes the shipped image tokenizers: ``python -m unigrpo.toy.making.image_tokenizer shapes``, or ``emoji``.

They are MAGVIT-v2s of reduced width. A picture of shapes is 16 of 512 codes, one of emoji 36 of 1,024: 9 and 10 bits a code, 8
pixels a code. All shapes are seen, held out are the pictures; of emoji, the scenes of the split test. What a tokenizer cannot
restore, no policy can draw, so its accuracy bounds theirs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.pictures import to_images, to_pixels
from ...models.magvit import MagvitV2, MagvitV2Config
from ...terminal import say
from .. import emoji, emoji_check
from ..pixel_check import inspect
from ..shapes import SPECS, Spec, render
from .fitting import directory_size, draw_seed, fit, private_construction


Draw = Callable[[int], Tensor]
"""Gives that many pictures, ``[n, 3, H, W]`` float32 in [-1, 1]."""

PICTURES_PER_SPEC = 40

HELD_OUT_SEED = 1_000_003

SMOOTH_L1, COMMITMENT, ENTROPY, EARLY_ENTROPY = 0.3, 0.02, 0.01, 0.02
"""Weights beside the squared error; the entropy term counts more in the first quarter, when codes are being found."""


def build_model(world: World, *, generator: torch.Generator) -> MagvitV2:
    """The MAGVIT-v2 of ``world``; the weights depend on ``generator`` alone."""
    with private_construction(generator):
        return MagvitV2(MagvitV2Config(num_groups=4, encoder_blocks=[1] * 4, decoder_blocks=[1] * 4, **world.sizes))


def gallery(per_spec: int, seed: int) -> tuple[list[Spec], Tensor]:
    """``per_spec`` pictures of every spec: the specs, and their pixels ``[n, 3, 32, 32]`` float32 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    members = [spec for spec in SPECS for _ in range(per_spec)]
    return members, to_pixels([render(spec, rng) for spec in members])


def emoji_pictures(split: str, count: int, seed: int) -> tuple[list[emoji.Scene], Tensor]:
    """``count`` random scenes of a split, and their pixels ``[count, 3, 48, 48]`` float32 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    scenes = [emoji.some_scene(split, rng) for _ in range(count)]
    return scenes, to_pixels([emoji.render(scene, rng) for scene in scenes])


def checkpoint(world: str) -> Path:
    """Where the tokenizer of a world ships."""
    return Path(__file__).parents[1] / "checkpoints" / f"{world}_tokenizer"


def straight_through_signs(logits: Tensor) -> Tensor:
    """+-1 as the quantiser rounds ``logits`` (0 becomes -1), with the gradient of the identity."""
    signs = (logits > 0).to(logits.dtype) * 2 - 1
    return logits + (signs - logits).detach()


def autoencoder_loss(model: MagvitV2, pixels: Tensor, *, entropy_weight: float) -> Tensor:
    """Reconstruction error, distance of the logits from their signs, and bit entropy, of pixels ``[B, 3, H, W]``.

    The entropy term makes each bit certain and, over the batch, equally often either: its entropy less that of its mean.
    """
    logits = model(pixels)
    signs = straight_through_signs(logits)
    error = model.decoder(signs) - pixels
    commitment = (logits - signs.detach()).square().mean()
    certainty = torch.sigmoid(4 * logits)
    entropy = _bit_entropy(certainty).mean() - _bit_entropy(certainty.mean(dim=(0, 2, 3))).mean()
    return error.square().mean() + SMOOTH_L1 * error.abs().mean() + COMMITMENT * commitment + entropy_weight * entropy


def _bit_entropy(probability: Tensor) -> Tensor:
    p = probability.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log())


def train(
    model: MagvitV2,
    draw: Draw,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    state: Path | None = None,
) -> float:
    """Trains ``model`` in place on the pictures of ``draw`` and returns the last loss; ``state`` as in ``fit``."""

    def loss(step: int) -> Tensor:
        weight = EARLY_ENTROPY if step < steps // 4 else ENTROPY
        return autoencoder_loss(model, draw(batch_size), entropy_weight=weight)

    adamw = {"lr": learning_rate, "betas": (0.9, 0.99), "weight_decay": 1e-4}
    return fit(model, loss, steps=steps, title="image tokenizer", generator=generator, state=state, **adamw)


@torch.no_grad()
def reconstruct(model: MagvitV2, pixels: Tensor, batch_size: int = 240) -> Tensor:
    """Pixels ``[n, 3, H, W]`` through codes and back, clamped to [-1, 1]."""
    parts = []
    for part in pixels.split(batch_size):
        logits = model(part)
        parts.append(model.decoder((logits > 0).to(logits.dtype) * 2 - 1).clamp(-1, 1))
    return torch.cat(parts)


def shapes_accuracy(model: MagvitV2, per_spec: int = 4, seed: int = HELD_OUT_SEED) -> float:
    """Share of held-out reconstructions whose colour and shape the pixel checker reads right."""
    members, pixels = gallery(per_spec, seed)
    seen = [inspect(image) for image in to_images(reconstruct(model, pixels))]
    hits = [(s.colour, s.shape) == (spec.colour, spec.shape) for s, spec in zip(seen, members, strict=True)]
    return sum(hits) / len(hits)


def emoji_accuracy(model: MagvitV2, count: int = 400, seed: int = HELD_OUT_SEED) -> float:
    """Share of reconstructions of held-out scenes that the check reads right, and as near as a drawn picture must be."""
    scenes, pixels = emoji_pictures("test", count, seed)
    restored = zip(to_images(reconstruct(model, pixels)), scenes, strict=True)
    return sum(emoji_check.clear_picture(image, emoji.caption(scene)) for image, scene in restored) / count


def _shapes_source(generator: torch.Generator) -> Draw:
    _, pixels = gallery(PICTURES_PER_SPEC, draw_seed(generator))
    return lambda count: pixels[torch.randint(len(pixels), (count,), generator=generator)]


def _emoji_source(generator: torch.Generator) -> Draw:
    return lambda count: emoji_pictures("train", count, draw_seed(generator))[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What an image tokenizer is trained for: its ``sizes``, its pictures, and how it is measured."""

    sizes: dict[str, Any]
    training: dict[str, Any]
    source: Callable[[torch.Generator], Draw]
    accuracy: Callable[[MagvitV2], float]

    def train(self, steps: int, *, seed: int, state: Path | None = None) -> MagvitV2:
        """A model trained from random weights."""
        generator = torch.Generator().manual_seed(seed)
        model = build_model(self, generator=generator)
        draw = self.source(generator)
        train(model, draw, **{**self.training, "steps": steps}, generator=generator, state=state)
        return model


WORLDS = {
    "shapes": World(
        sizes={
            "channels": 16,
            "encoder_multipliers": [1, 2, 3, 4],
            "decoder_multipliers": [1, 2, 3, 4],
            "code_bits": 9,
        },
        training={"steps": 2000, "batch_size": 48, "learning_rate": 2e-3},
        source=_shapes_source,
        accuracy=shapes_accuracy,
    ),
    "emoji": World(
        sizes={
            "channels": 8,
            "encoder_multipliers": [1, 2, 4, 8],
            "decoder_multipliers": [2, 4, 6, 12],
            "code_bits": 10,
        },
        training={"steps": 4000, "batch_size": 24, "learning_rate": 3e-3},
        source=_emoji_source,
        accuracy=emoji_accuracy,
    ),
}
"""0.7 and 1.0 M parameters."""


def main() -> None:
    """Command line: trains and saves a shipped image tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=sorted(WORLDS), nargs="?", default="shapes")
    parser.add_argument("--output", type=Path, help="default: the folder of builtin:WORLD_tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="default: as it ships")
    parser.add_argument("--state", type=Path, help="a file from which an interrupted training goes on")
    args = parser.parse_args()
    world, output = WORLDS[args.world], args.output or checkpoint(args.world)
    world.train(args.steps or world.training["steps"], seed=args.seed, state=args.state).half().save_pretrained(output)
    model = MagvitV2.from_pretrained(output)
    say(f"reconstructions read right  {100 * world.accuracy(model):5.1f} %")
    say(f"{directory_size(output) / 1e6:5.2f} MB in {output}")


if __name__ == "__main__":
    main()
