"""Makes the shipped image tokenizer of the shapes world: ``python -m unigrpo.toy.making.image_tokenizer``.

It is a MAGVIT-v2 of reduced width: 9 bits a code, 8 pixels a code, so that a picture is 16 of 512 codes. All 240 specs are
seen; held out are the pictures. What it cannot restore, no policy can draw, so its accuracy bounds theirs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...data.pictures import to_images, to_pixels
from ...models.magvit import MagvitV2, MagvitV2Config
from ...terminal import say, tracked
from ..pixel_check import inspect
from ..shapes import SPECS, Spec, render


CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "shapes_tokenizer"

TRAINING = {"steps": 2000, "batch_size": 48, "learning_rate": 2e-3}

PICTURES_PER_SPEC = 40

HELD_OUT_SEED = 1_000_003

SMOOTH_L1, COMMITMENT, ENTROPY, EARLY_ENTROPY = 0.3, 0.02, 0.01, 0.02
"""Weights beside the squared error; the entropy term counts more in the first quarter, when codes are being found."""


def build_model(*, generator: torch.Generator) -> MagvitV2:
    """A MAGVIT-v2 of 0.7 M parameters; the weights depend on ``generator`` alone."""
    config = MagvitV2Config(
        channels=16,
        encoder_multipliers=[1, 2, 3, 4],
        encoder_blocks=[1, 1, 1, 1],
        decoder_multipliers=[1, 2, 3, 4],
        decoder_blocks=[1, 1, 1, 1],
        code_bits=9,
        num_groups=4,
    )
    with private_construction(generator):
        return MagvitV2(config)


@contextmanager
def private_construction(generator: torch.Generator) -> Iterator[None]:
    """Layers made inside take their weights from ``generator``; the global stream is left as it was."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the GPUs too, and nothing would put those back.
        torch.default_generator.manual_seed(draw_seed(generator))
        yield


def draw_seed(generator: torch.Generator) -> int:
    """An integer in [0, 2^31) for a generator that is not torch's."""
    return int(torch.randint(2**31, (), generator=generator))


def gallery(per_spec: int, seed: int) -> tuple[list[Spec], Tensor]:
    """``per_spec`` pictures of every spec: the specs, and their pixels ``[n, 3, 32, 32]`` float32 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    members = [spec for spec in SPECS for _ in range(per_spec)]
    return members, to_pixels([render(spec, rng) for spec in members])


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
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    per_spec: int = PICTURES_PER_SPEC,
    generator: torch.Generator,
) -> float:
    """Trains ``model`` in place on ``per_spec`` pictures of every spec and returns the last loss."""
    _, pixels = gallery(per_spec, draw_seed(generator))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    model.train()
    for step in tracked(range(steps), "image tokenizer"):
        rows = torch.randint(len(pixels), (batch_size,), generator=generator)
        weight = EARLY_ENTROPY if step < steps // 4 else ENTROPY
        loss = autoencoder_loss(model, pixels[rows], entropy_weight=weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    return loss.item()


def warm_cosine(step: int, steps: int, warm_up: int = 50) -> float:
    """Factor on the learning rate: linear up over ``warm_up`` steps, then a cosine to zero at ``steps``."""
    return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def reconstruct(model: MagvitV2, pixels: Tensor, batch_size: int = 240) -> Tensor:
    """Pixels ``[n, 3, H, W]`` through codes and back, clamped to [-1, 1]."""
    parts = []
    for part in pixels.split(batch_size):
        logits = model(part)
        parts.append(model.decoder((logits > 0).to(logits.dtype) * 2 - 1).clamp(-1, 1))
    return torch.cat(parts)


def reconstruction_accuracy(model: MagvitV2, per_spec: int = 4, seed: int = HELD_OUT_SEED) -> float:
    """Share of held-out reconstructions whose colour and shape the pixel checker reads right."""
    members, pixels = gallery(per_spec, seed)
    seen = [inspect(image) for image in to_images(reconstruct(model, pixels))]
    hits = [(s.colour, s.shape) == (spec.colour, spec.shape) for s, spec in zip(seen, members, strict=True)]
    return sum(hits) / len(hits)


def main() -> None:
    """Command line: trains and saves the shipped image tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=CHECKPOINT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=TRAINING["steps"])
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(args.seed)
    model = build_model(generator=generator)
    train(model, **{**TRAINING, "steps": args.steps}, generator=generator)
    model.half().save_pretrained(args.output)
    model = MagvitV2.from_pretrained(args.output)
    say(f"reconstructions read right  {100 * reconstruction_accuracy(model):5.1f} %")
    say(f"{directory_size(args.output) / 1e6:5.2f} MB in {args.output}")


def directory_size(folder: Path) -> int:
    """Bytes of all files under ``folder``."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
