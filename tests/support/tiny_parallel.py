"""Small MMaDA-Parallel-M's: the goldens' network, one with as many codes as the tiny MAGVIT-v2 has, and rows to edit."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from unigrpo.models import MMaDAParallelMForMaskedDiffusion, MMaDAParallelMPolicy

from .images import picture
from .tiny import GOLDENS, golden_tokenizer, prompts, tiny_config_fields
from .tiny_decoders import family_golden


IDS = {"bos": 120, "eos": 121, "soi": 124, "eoi": 125, "interleave": 135, "mask": 136}
"""The recorded ids."""

REST = ("sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg", "ipad", "r2i")
"""Marks that no recorded row has."""

SPECIAL = {
    **{name: IDS[name] for name in ("soi", "eoi", "interleave")},
    **dict(zip(REST, range(126, 135), strict=True)),
}
SPECIAL |= {"start_header": 146, "end_header": 147, "eot": 148}
OFFSET, CODES = 150, 40


def recorded_tokenizer() -> PreTrainedTokenizerFast:
    """'w{i}' is id i; bos, eos, the mask and the chat's tokens sit at their ids."""
    named = {120: "<|startoftext|>", 121: "<|endoftext|>", 136: "<|mdm_mask|>"}
    named |= {146: "<|start_header_id|>", 147: "<|end_header_id|>", 148: "<|eot_id|>"}
    inner = Tokenizer(WordLevel({named.get(i, f"w{i}"): i for i in range(OFFSET)}, unk_token="w0"))
    inner.pre_tokenizer = WhitespaceSplit()
    special = {"bos_token": named[120], "eos_token": named[121], "pad_token": named[121], "unk_token": "w0"}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, additional_special_tokens=[named[i] for i in (136, 146, 147, 148)], **special
    )


def recorded_parallel() -> tuple[MMaDAParallelMForMaskedDiffusion, MMaDAParallelMPolicy]:
    """The recorded network and its policy."""
    fields = {"image_token_offset": OFFSET, "special_token_ids": SPECIAL, "bos_token_id": IDS["bos"]}
    model = MMaDAParallelMForMaskedDiffusion.from_pretrained(family_golden("mmada_parallel_m"), **fields).eval()
    return model, MMaDAParallelMPolicy(model.config, recorded_tokenizer())


def tiny_parallel() -> tuple[MMaDAParallelMForMaskedDiffusion, MMaDAParallelMPolicy]:
    """MMaDA's recorded network of 64 codes, opened as this family."""
    fields = tiny_config_fields()
    fields["special_token_ids"] = {**fields["special_token_ids"], "interleave": 175}
    model = MMaDAParallelMForMaskedDiffusion.from_pretrained(GOLDENS / "mmada_tiny", **fields).eval()
    return model, MMaDAParallelMPolicy(model.config, golden_tokenizer())


def edits(count: int = 4, codes: int | None = None) -> list[dict[str, Any]]:
    """Rows to think about and edit, with instructions of several lengths; with so many ``codes`` those of pictures in place of them."""
    rows = [{**row, "task": "r2i"} for row in prompts(count)]
    for number, row in enumerate(rows):
        if codes is None:
            row["image"] = picture(number)
        else:
            row["image_codes"] = torch.randint(64, (codes,), generator=torch.Generator().manual_seed(number))
    return rows
