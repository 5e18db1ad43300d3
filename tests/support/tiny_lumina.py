"""A small Lumina-DiMOO: the goldens' network, a tokenizer with its tags, a VQModel, rows."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from unigrpo.models import (
    LuminaConfig,
    LuminaForMaskedDiffusion,
    LuminaPolicy,
    LuminaProcessor,
    MMaDAParallelAForMaskedDiffusion,
    MMaDAParallelAPolicy,
)
from unigrpo.types import IMAGE_IN

from .images import picture
from .tiny import prompts
from .tiny_decoders import family_golden


TAGS = {
    "<system>": 0,
    "</system>": 69,
    "<user>": 8,
    "</user>": 21,
    "<uncondition>": 135,
    "<answer>": 138,
    "</answer>": 139,
}
SPECIAL = {"newline": 121, "boi": 133, "eoi": 134, "uncondition": 135, "answer_start": 138, "answer_end": 139}
OFFSET, CODES, MASK, PAD = 140, 48, 128, 131
FIELDS: dict[str, Any] = {
    "image_token_offset": OFFSET,
    "codebook_size": CODES,
    "special_token_ids": SPECIAL,
    "stop_token_ids": [PAD, 139],
    "sampling_defaults": {"image_size": 64},
}
"""What the goldens' config.json leaves to the caller."""


def lumina_tokenizer() -> PreTrainedTokenizerFast:
    """'w{i}' is id i; the tags sit at the goldens' ids."""
    words = {f"w{i}": i for i in range(OFFSET)}
    for name, own in {**TAGS, "<|mask|>": MASK, "<|pad|>": PAD}.items():
        del words[f"w{own}"]
        words[name] = own
    inner = Tokenizer(WordLevel(words, unk_token="w1"))
    inner.pre_tokenizer = WhitespaceSplit()
    special = [*TAGS, "<|mask|>", "<|pad|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="w1", pad_token="<|pad|>", additional_special_tokens=special
    )


def tiny_lumina(**fields: Any) -> tuple[LuminaForMaskedDiffusion, LuminaPolicy]:
    """The goldens' 0.08 M-parameter network and its policy."""
    model = LuminaForMaskedDiffusion.from_pretrained(family_golden("lumina_dimoo"), **{**FIELDS, **fields}).eval()
    return model, LuminaPolicy(model.config, lumina_tokenizer())


def tiny_parallel_a(**fields: Any) -> tuple[MMaDAParallelAForMaskedDiffusion, MMaDAParallelAPolicy]:
    """The goldens' network of MMaDA-Parallel-A, as large, and its policy."""
    folder = family_golden("mmada_parallel_a")
    model = MMaDAParallelAForMaskedDiffusion.from_pretrained(folder, **{**FIELDS, **fields}).eval()
    return model, MMaDAParallelAPolicy(model.config, lumina_tokenizer())


def random_lumina(codes: int = 64) -> tuple[LuminaForMaskedDiffusion, Any]:
    """A random one with so many codes, as the tiny MAGVIT-v2 has, and its processor; no file names it."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 48}
    ids = {"mask_token_id": MASK, "pad_token_id": PAD, "eos_token_id": PAD, "vocab_size": OFFSET + codes}
    config = LuminaConfig(**{**FIELDS, **sizes, **ids, "codebook_size": codes, "image_tokenizer": None})
    return LuminaForMaskedDiffusion(config).eval(), LuminaProcessor(lumina_tokenizer())


def lumina_rows(task: str, count: int = 4, grid: tuple[int, int] | None = None) -> list[dict[str, Any]]:
    """Rows of one task with prompts of several lengths; with a ``grid`` the codes of pictures in place of them."""
    rows = [{**row, "task": task} for row in prompts(count, (2, 20, 5, 9))]
    for number, row in enumerate(rows):
        if task in IMAGE_IN and grid is None:
            row["image"] = picture(number)
        elif task in IMAGE_IN:
            generator = torch.Generator().manual_seed(number)
            row |= {"image_codes": torch.randint(CODES, (grid[0] * grid[1],), generator=generator), "image_grid": grid}
    return rows


class Cells:
    """An image tokenizer of 16-pixel cells for the network's 48 codes: their mean brightness. Needs no package."""

    class config:
        codebook_size, factor, name_or_path = CODES, 16, "cells"

    device = torch.device("cpu")

    def eval(self) -> Cells:
        return self

    def requires_grad_(self, _: bool) -> Cells:
        return self

    def to(self, _: Any) -> Cells:
        return self

    def code_grid(self, height: int, width: int) -> tuple[int, int]:
        if height % 16 or width % 16:
            raise ValueError(f"image sides {height} x {width} must be multiples of 16 pixels")
        return height // 16, width // 16

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        means = torch.nn.functional.avg_pool2d(pixels, 16).mean(dim=1).flatten(1)
        return ((means + 1) / 2 * CODES).long().clamp(0, CODES - 1)

    def decode(self, codes: torch.Tensor, height: int, width: int) -> torch.Tensor:
        rows, columns = self.code_grid(height, width)
        values = (codes.float().reshape(-1, 1, rows, columns) + 0.5) / CODES * 2 - 1
        return values.expand(-1, 3, -1, -1).repeat_interleave(16, 2).repeat_interleave(16, 3)
