"""Makes the shipped CLIPs, rewards that are networks: ``python -m unigrpo.toy.making.clip shapes``, or ``emoji``.

Real ``transformers.CLIPModel``s of 0.3 M parameters. They see clean pictures and pictures that went through the image tokenizer,
because a policy's pictures are of the second kind. Of shapes all are seen, and held out are the pictures; of emoji, scenes are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from ...models.magvit import MagvitV2
from ...models.processing import name_for_transformers_4
from ...terminal import say
from . import image_tokenizer
from .clip_worlds import WORLDS, Draw
from .fitting import directory_size, fit, private_construction


MOST_NOISE = 0.15
"""Largest standard deviation of the noise on a training picture, in units of the [-1, 1] pixels."""

LARGEST_LOGIT_SCALE = 50.0

TEXT_WINDOW = 16
SPECIAL = {"pad": "<pad>", "unk": "<unk>", "bos": "<bos>", "eos": "<eos>"}
"""In this order, so that eos is 3: a CLIP configuration with eos 2 pools at the largest id instead."""


def build_tokenizer(words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """One token a word, whatever its case; between bos and eos, at most ``TEXT_WINDOW`` in all; padded at the right."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL.values(), *(w.lower() for w in words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="isolated")]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL.values()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL['bos']} $A {SPECIAL['eos']}",
        special_tokens=[(SPECIAL[name], vocabulary[SPECIAL[name]]) for name in ("bos", "eos")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{name}_token": token for name, token in SPECIAL.items()},
        model_max_length=TEXT_WINDOW,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def build_image_processor(side: int) -> CLIPImageProcessorPil:
    """``side`` x ``side`` pixels in [-1, 1], as ``unigrpo.data.pictures.to_pixels`` makes them."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def build_model(tokenizer: PreTrainedTokenizerFast, side: int, *, generator: torch.Generator) -> CLIPModel:
    """A CLIP of pictures ``side`` wide around ``tokenizer``, with patches of 8 pixels; the weights depend on ``generator`` alone."""
    config = CLIPConfig(
        text_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "projection_dim": 64,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": TEXT_WINDOW,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "projection_dim": 64,
            "image_size": side,
            "patch_size": 8,
        },
        projection_dim=64,
    )
    with private_construction(generator):
        return CLIPModel(config)


def contrastive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Mean of both directions' cross-entropy from ``logits`` ``[images, texts]`` to the even share over ``positive``."""
    by_row = -(logits.log_softmax(1) * positive / positive.sum(1, keepdim=True)).sum(1).mean()
    by_column = -(logits.log_softmax(0) * positive / positive.sum(0, keepdim=True)).sum(0).mean()
    return (by_row + by_column) / 2


def train(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
    draw: Draw,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    state: Path | None = None,
) -> float:
    """Trains ``model`` in place on the pictures and captions of ``draw`` and returns the last loss; ``state`` as in ``fit``."""

    def loss(step: int) -> Tensor:
        pixels, captions, positive = draw(batch_size)
        pixels = noisy(pixels, generator=generator)
        return contrastive_loss(similarity(model, pixels, encode(tokenizer, captions)), positive)

    adamw = {"lr": learning_rate, "betas": (0.9, 0.98), "weight_decay": 0.01}
    return fit(model, loss, steps=steps, title="CLIP", generator=generator, state=state, **adamw)


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Ids ``[n, L]`` int64, padded at the right to the longest."""
    return tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]


def noisy(pixels: Tensor, *, generator: torch.Generator) -> Tensor:
    """``pixels`` plus Gaussian noise, each picture with its own level up to ``MOST_NOISE``."""
    level = MOST_NOISE * torch.rand((len(pixels), 1, 1, 1), generator=generator)
    return pixels + level * torch.randn(pixels.shape, generator=generator)


def similarity(model: CLIPModel, pixels: Tensor, texts: Tensor) -> Tensor:
    """``[n_images, n_texts]`` cosines times the learned scale, which is kept at most ``LARGEST_LOGIT_SCALE``."""
    image = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    text = F.normalize(model.get_text_features(input_ids=texts).pooler_output, dim=-1)
    return model.logit_scale.exp().clamp(max=LARGEST_LOGIT_SCALE) * image @ text.T


def make(world: str, magvit: MagvitV2, output: Path, *, steps: int, seed: int, state: Path | None = None) -> None:
    """Trains the CLIP of a world from random weights and writes it to ``output`` in half precision."""
    own, generator = WORLDS[world], torch.Generator().manual_seed(seed)
    tokenizer = build_tokenizer(own.words)
    model = build_model(tokenizer, own.side, generator=generator)
    draw = own.source(magvit, generator)
    train(model, tokenizer, draw, **{**own.training, "steps": steps}, generator=generator, state=state)
    for part in (model.half(), tokenizer, build_image_processor(own.side)):
        part.save_pretrained(output)
    name_for_transformers_4(output)


def main() -> None:
    """Command line: trains and saves a shipped CLIP."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=sorted(WORLDS), nargs="?", default="shapes")
    parser.add_argument("--output", type=Path, help="default: the folder of builtin:WORLD_clip")
    parser.add_argument("--image-tokenizer", type=Path, help="default: the folder of builtin:WORLD_tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="default: as it ships")
    parser.add_argument("--state", type=Path, help="a file from which an interrupted training goes on")
    args = parser.parse_args()
    world, output = WORLDS[args.world], args.output or checkpoint(args.world)
    magvit = MagvitV2.from_pretrained(args.image_tokenizer or image_tokenizer.checkpoint(args.world))
    make(args.world, magvit, output, steps=args.steps or world.training["steps"], seed=args.seed, state=args.state)
    model, tokenizer = load(output)
    shares = world.figures(lambda pixels, texts: similarity(model, pixels, encode(tokenizer, texts)), magvit)
    for label, share in shares.items():
        say(f"{label:48} {100 * share:5.1f} %")
    say(f"{directory_size(output) / 1e6:5.2f} MB in {output}")


def checkpoint(world: str) -> Path:
    """Where the CLIP of a world ships."""
    return Path(__file__).parents[1] / "checkpoints" / f"{world}_clip"


def load(folder: Path) -> tuple[CLIPModel, PreTrainedTokenizerFast]:
    """A CLIP in float32, and its tokenizer."""
    return (
        CLIPModel.from_pretrained(folder, dtype=torch.float32).eval(),
        PreTrainedTokenizerFast.from_pretrained(folder),
    )


if __name__ == "__main__":
    main()
