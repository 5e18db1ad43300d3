"""A word-and-character tokenizer with MMaDA's special tokens, and the configuration of a small MMaDA around it."""

from __future__ import annotations

import re
import string
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ...models import MMaDAConfig
from ..arithmetic import NAMES, OBJECTS, TEMPLATES


SAMPLING = {"max_completion_length": 16, "steps": 16, "block_length": 4}
"""Blocks shorter than an answer: the reasoning is written before the result that depends on it."""

CHAT_TOKENS = {
    "bos": "<|startoftext|>",
    "eos": "<|endoftext|>",
    "mask": "<|mdm_mask|>",
    "start_header": "<|start_header_id|>",
    "end_header": "<|end_header_id|>",
    "eot": "<|eot_id|>",
}
LAYOUT_TOKENS = ("soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg", "ipad", "r2i")
ROLES = ("user", "assistant", "system")
TAGS = ("<think>", "</think>")


def prompt_pieces() -> list[str]:
    """The fixed text between the slots of the templates, the names and the objects: one token each."""
    between = {piece for text in TEMPLATES for piece in re.split(r"\{\w+\}", text) if len(piece) > 1}
    return [*sorted(between), *NAMES, *OBJECTS]


def build_tokenizer(words: tuple[str, ...] = (), phrases: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer that restores every text of printable ASCII characters exactly.

    Known pieces are one token, any other character is its own; a digit is, unless ``words`` have the number. ``words`` are
    further pieces, each also with a space before it, and ``phrases`` are pieces as they are. ``<think>`` and ``</think>`` are
    ordinary tokens, so decoding keeps them; the rest of the layout tokens are special.
    """
    special = [*CHAT_TOKENS.values(), *(f"<|{name}|>" for name in LAYOUT_TOKENS), "<|unk|>"]
    characters = ["\n", *string.digits, *sorted(set(string.printable[10:95]) | {" "})]
    pieces = [*TAGS, *ROLES, *prompt_pieces(), *(f" {word}" for word in words)]
    pieces += [*(word for word in words if word not in characters), *phrases]
    vocabulary = {token: index for index, token in enumerate([*special, *pieces, *characters])}
    longest_first = sorted(pieces, key=len, reverse=True)
    pattern = "|".join([*(re.escape(piece) for piece in longest_first), r"[\s\S]"])
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=CHAT_TOKENS["bos"],
        eos_token=CHAT_TOKENS["eos"],
        pad_token=CHAT_TOKENS["eos"],
        mask_token=CHAT_TOKENS["mask"],
        unk_token="<|unk|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def special_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """``MMaDAConfig.special_token_ids`` for ``build_tokenizer``'s vocabulary."""
    names = {name: f"<|{name}|>" for name in LAYOUT_TOKENS}
    names |= {name: CHAT_TOKENS[name] for name in ("start_header", "end_header", "eot")}
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def build_config(tokenizer: PreTrainedTokenizerFast, **fields: Any) -> MMaDAConfig:
    """The configuration of a MMaDA of 0.7 M parameters around ``tokenizer``; ``fields`` replace what it says.

    The rotary base is 100, because at 500,000 most of a head's dimensions do not turn within 40 positions.
    """
    length, codes = len(tokenizer), fields.get("codebook_size", 16)
    values = {
        "d_model": 128,
        "n_layers": 3,
        "n_heads": 4,
        "n_kv_heads": 4,
        "mlp_hidden_size": 384,
        "rope_theta": 100.0,
        "max_sequence_length": 128,
        "vocab_size": length + codes,
        "llm_vocab_size": length,
        "image_token_offset": length,
        "codebook_size": codes,
        "num_vq_tokens": codes,
        "image_tokenizer": None,
        "sampling_defaults": SAMPLING,
        "special_token_ids": special_token_ids(tokenizer),
        "mask_token_id": tokenizer.mask_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "architectures": ["MMaDAForMaskedDiffusion"],
        "dtype": torch.float32,
    }
    return MMaDAConfig(**{**values, **fields})
