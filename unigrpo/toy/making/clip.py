"""Makes the shipped CLIP of the shapes world, a reward that is a network: ``python -m unigrpo.toy.making.clip``.

A real ``transformers.CLIPModel`` of 0.3 M parameters. It sees clean pictures and pictures that went through the image
tokenizer, because a policy's pictures are of the second kind; all 240 specs are seen, and held out are the pictures.
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
from ...terminal import say, tracked
from ..shapes import FORMS, SIDE, SPECS, WORDS, caption
from .image_tokenizer import CHECKPOINT as TOKENIZER_CHECKPOINT
from .image_tokenizer import (
    HELD_OUT_SEED,
    directory_size,
    draw_seed,
    gallery,
    private_construction,
    reconstruct,
    warm_cosine,
)


CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "shapes_clip"

TRAINING = {"steps": 1500, "batch_size": 128, "learning_rate": 2e-3}

PICTURES_PER_SPEC = 40
MOST_NOISE = 0.15
"""Largest standard deviation of the noise on a training picture, in units of the [-1, 1] pixels."""

LARGEST_LOGIT_SCALE = 50.0

TEXT_WINDOW = 16
SPECIAL = {"pad": "<pad>", "unk": "<unk>", "bos": "<bos>", "eos": "<eos>"}
"""In this order, so that eos is 3: a CLIP configuration with eos 2 pools at the largest id instead."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, whatever its case; between bos and eos, at most ``TEXT_WINDOW`` in all; padded at the right."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL.values(), *(w.lower() for w in WORDS)])}
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


def build_image_processor() -> CLIPImageProcessorPil:
    """32 x 32 pixels in [-1, 1], as ``unigrpo.data.pictures.to_pixels`` makes them."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def build_model(tokenizer: PreTrainedTokenizerFast, *, generator: torch.Generator) -> CLIPModel:
    """A CLIP around ``tokenizer`` with patches of 8 pixels; the weights depend on ``generator`` alone."""
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
            "image_size": SIDE,
            "patch_size": 8,
        },
        projection_dim=64,
    )
    with private_construction(generator):
        return CLIPModel(config)


def words_of(texts: Tensor) -> Tensor:
    """``[n, W]`` bool: which words occur in ids ``[n, L]``; special tokens are no words."""
    words = torch.stack([(texts == index).any(dim=1) for index in range(len(SPECIAL) + len(WORDS))], dim=1)
    words[:, : len(SPECIAL)] = False
    return words


def fits(captions: Tensor, specs: Tensor) -> Tensor:
    """``[n_specs, n_captions]`` bool: the full caption of the spec has every word of the caption.

    Both arguments are ``words_of`` texts: any captions, and the full captions of the specs.
    """
    return ~(captions[None] & ~specs[:, None]).any(dim=-1)


def contrastive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Mean of both directions' cross-entropy from ``logits`` ``[images, texts]`` to the even share over ``positive``."""
    by_row = -(logits.log_softmax(1) * positive / positive.sum(1, keepdim=True)).sum(1).mean()
    by_column = -(logits.log_softmax(0) * positive / positive.sum(0, keepdim=True)).sum(0).mean()
    return (by_row + by_column) / 2


def train(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
    magvit: MagvitV2,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    per_spec: int = PICTURES_PER_SPEC,
    generator: torch.Generator,
) -> float:
    """Trains ``model`` in place on ``per_spec`` pictures of every spec and returns the last loss.

    A batch pairs pictures, half of them reconstructions by ``magvit``, with captions of random forms; a short caption is
    true of several pictures, and all of those are its positives.
    """
    members, real = gallery(per_spec, draw_seed(generator))
    pictures = torch.stack([real, reconstruct(magvit, real)])
    texts = encode(tokenizer, [caption(spec, form) for spec in members for form in FORMS])
    words = words_of(texts)
    texts, words = texts.unflatten(0, (-1, len(FORMS))), words.unflatten(0, (-1, len(FORMS)))

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    model.train()
    for _ in tracked(range(steps), "CLIP"):
        rows = torch.randint(len(members), (batch_size,), generator=generator)
        forms = torch.randint(len(FORMS), (batch_size,), generator=generator)
        kinds = torch.arange(batch_size) % len(pictures)
        pixels = noisy(pictures[kinds, rows], generator=generator)
        logits = similarity(model, pixels, texts[rows, forms])
        loss = contrastive_loss(logits, fits(words[rows, forms], words[rows, 0]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    return loss.item()


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


@torch.no_grad()
def retrieval_accuracy(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, pixels: Tensor, batch_size: int = 240
) -> float:
    """Share of ``gallery`` pictures, in its order, whose own full caption is the nearest of all 240."""
    texts = encode(tokenizer, [caption(spec) for spec in SPECS])
    nearest = torch.cat([similarity(model, part, texts).argmax(1) for part in pixels.split(batch_size)])
    own = torch.arange(len(SPECS)).repeat_interleave(len(pixels) // len(SPECS))
    return (nearest == own).float().mean().item()


def main() -> None:
    """Command line: trains and saves the shipped CLIP."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=CHECKPOINT)
    parser.add_argument("--image-tokenizer", type=Path, default=TOKENIZER_CHECKPOINT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=TRAINING["steps"])
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(args.seed)
    magvit = MagvitV2.from_pretrained(args.image_tokenizer)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, generator=generator)
    train(model, tokenizer, magvit, **{**TRAINING, "steps": args.steps}, generator=generator)
    for part in (model.half(), tokenizer, build_image_processor()):
        part.save_pretrained(args.output)
    name_for_transformers_4(args.output)
    model = CLIPModel.from_pretrained(args.output, dtype=torch.float32).eval()
    _, pixels = gallery(4, HELD_OUT_SEED)
    for name, shown in (("real pictures", pixels), ("reconstructions", reconstruct(magvit, pixels))):
        say(f"own caption nearest, {name:16} {100 * retrieval_accuracy(model, tokenizer, shown):5.1f} %")
    say(f"{directory_size(args.output) / 1e6:5.2f} MB in {args.output}")


if __name__ == "__main__":
    main()
