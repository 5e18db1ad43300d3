"""Tiny decoders as diffusion models, with a tokenizer of Qwen's kind."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import DiffusionGemmaConfig, PreTrainedTokenizerFast

from unigrpo.models import POLICIES
from unigrpo.models.gemma import DiffusionGemmaForMaskedDiffusion, DiffusionGemmaPolicy

from .tiny import GOLDENS


ENDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>")
WORDS = 146
"""Ids of words; behind them the four special tokens, so that the mask id is 149."""

SIZES = {
    "vocab_size": 152,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    "tie_word_embeddings": False,
}

EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 4, "topk_group": 2}
"""Of which the second of two layers has."""

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dream": ("Dream", {"mask_token_id": None, "pad_token_id": 146, "eos_token_id": 146}),
    "a2d-qwen2": ("a2d-qwen2", {}),
    "a2d-qwen3": ("a2d-qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "a2d-llama": ("a2d-llama", {"logit_shift": 1, "pad_token_id": 146, "eos_token_id": 148}),
    "blocks": (
        "a2d-qwen3",
        {"head_dim": 8, "attention": "block_causal", "block_size": 4, "block_anchor": "prompt_end"},
    ),
    "sdar": ("sdar", {"head_dim": 8, "mask_token_id": None}),
    "llada2": ("llada2_moe", {"head_dim": 16, "block_size": 4, **EXPERTS}),
}
"""Family and fields of each: both shifts, tied and untied heads, both attentions, both anchors, experts, ids of the configuration and of the tokenizer."""


def family_golden(name: str) -> Any:
    """The folder of a family's golden checkpoint and arrays."""
    return GOLDENS / "families" / name


def decoder_tokenizer() -> PreTrainedTokenizerFast:
    """Word i is id i; it has a mask and brings no template."""
    words = {name: i for i, name in enumerate([*(f"w{i}" for i in range(WORDS - 2)), "user", "assistant", *ENDS])}
    inner = Tokenizer(WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = WhitespaceSplit()
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "w0"}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, **special, additional_special_tokens=["<|im_start|>", "<|mask|>"]
    )


def tiny_decoder(name: str, seed: int = 0, **fields: Any) -> tuple[Any, Any]:
    """A random model of ``DECODERS`` and its policy."""
    family, own = DECODERS[name]
    kind = POLICIES[family]
    torch.manual_seed(seed)
    config = kind.model_class.config_class(**{**SIZES, **own, **fields})
    policy = kind(config, decoder_tokenizer())
    return kind.model_class._from_config(config).eval(), policy


def tiny_gemma(seed: int = 0) -> tuple[Any, Any]:
    """A random DiffusionGemma with canvases of 4 tokens behind windows of 6, and its policy."""
    config = DiffusionGemmaConfig.from_pretrained(family_golden("diffusion_gemma"), canvas_length=4)
    text = config.text_config
    text.vocab_size, text.sliding_window, text.initializer_range = SIZES["vocab_size"], 6, SIZES["initializer_range"]
    text.pad_token_id, text.eos_token_id, text.bos_token_id = 146, 148, None
    torch.manual_seed(seed)
    model = DiffusionGemmaForMaskedDiffusion(config).eval()
    return model, DiffusionGemmaPolicy(config, decoder_tokenizer())
