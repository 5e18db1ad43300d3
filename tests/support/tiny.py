"""Small real models, tokenizers and rewards that many tests share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from unigrpo.models import LLaDAConfig, LLaDAForMaskedDiffusion, MMaDAForMaskedDiffusion, MMaDAProcessor


GOLDENS = Path(__file__).parents[1] / "goldens"
IDS = json.loads((GOLDENS / "g6_prompts.json").read_text())["ids"]
NAMES = json.loads((GOLDENS / "g6_prompts.json").read_text())["NAMES"]
SPECIALS = ("soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg", "ipad", "r2i")

TRAINING = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "num_generations": 4,
    "max_completion_length": 12,
    "steps": 6,
    "block_length": 6,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "max_steps": 4,
    "num_iterations": 2,
    "beta": 0.04,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}
"""A run of seconds: 16 answers a rollout, two optimizer steps an inner update."""


def golden(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Arrays and description of one golden file."""
    return load_file(GOLDENS / f"{name}.safetensors"), json.loads((GOLDENS / f"{name}.json").read_text())


def golden_tokenizer(size: str = "tiny") -> PreTrainedTokenizerFast:
    """The tokenizer of the goldens: 'w{i}' is id i, special names sit at their ids, the rest are fillers."""
    ids, words = IDS[size], {"tiny": 160, "real": 300}[size]
    taken = {ids[key]: name for key, name in NAMES.items()}
    vocab = {}
    for i in range(ids["n_tok"]):
        vocab[taken.get(i) or (f"w{i}" if i < words else f"<fill_{i}>")] = i
    inner = Tokenizer(WordLevel(vocab, unk_token="w0"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=NAMES["bos"],
        eos_token=NAMES["eos"],
        pad_token=NAMES["eos"],
        unk_token="w0",
        additional_special_tokens=[NAMES[key] for key in ("mask", "start_header", "end_header", "eot")],
    )


def tiny_config_fields() -> dict:
    """What the goldens' config.json leaves to the caller: the image offset and the ids of the special tokens."""
    ids = IDS["tiny"]
    table = {key: ids[key] for key in (*SPECIALS, "start_header", "end_header", "eot")}
    return {"image_token_offset": ids["n_tok"], "special_token_ids": table, "bos_token_id": ids["bos"]}


def tiny_model(dtype: torch.dtype = torch.float32) -> MMaDAForMaskedDiffusion:
    """The goldens' 0.14 M-parameter MMaDA."""
    return MMaDAForMaskedDiffusion.from_pretrained(GOLDENS / "mmada_tiny", dtype=dtype, **tiny_config_fields()).eval()


def tiny_llada(n_kv_heads: int = 2, **fields: Any) -> LLaDAForMaskedDiffusion:
    """A random LLaDA of two layers; iLLaDA's head is tied (``weight_tying=True``)."""
    torch.manual_seed(0)
    sizes = {
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": n_kv_heads,
        "mlp_hidden_size": 48,
        "vocab_size": 208,
    }
    ids = {"mask_token_id": 184, "eos_token_id": 161, "pad_token_id": 161}
    return LLaDAForMaskedDiffusion(LLaDAConfig(**sizes, **ids, **fields)).eval()


def wide_model() -> MMaDAForMaskedDiffusion:
    """A random model like it, all of whose sizes are multiples of 64, the length of a block of 4-bit weights."""
    config = tiny_model().config
    config.mlp_hidden_size = 128
    torch.manual_seed(0)
    return MMaDAForMaskedDiffusion(config).eval()


def tiny_processor() -> MMaDAProcessor:
    return MMaDAProcessor(golden_tokenizer())


def prompts(count: int, words: tuple[int, ...] = (2, 5, 3)) -> list[dict]:
    """Rows with prompts of mixed length and a solution column."""
    rows = []
    for i in range(count):
        text = " ".join(f"w{(7 * i + j) % 150}" for j in range(words[i % len(words)]))
        rows.append({"prompt": text, "solution": str(i)})
    return rows


def low_ids(prompts, completions, completion_ids, **_):
    """A dense reward in [0, 1]: the share of tokens with an even id."""
    return [sum(token % 2 == 0 for token in ids) / max(len(ids), 1) for ids in completion_ids]
