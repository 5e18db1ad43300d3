"""Other families' public code, number for number: logits, and checkpoints under their published names."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM

from ..support.tiny_decoders import family_golden
from ..support.tolerances import BF16_MAX, BF16_RMS, assert_rounding


pytestmark = pytest.mark.golden

FAMILIES = ("dream", "a2d_qwen2", "a2d_qwen3", "llada", "illada_like")

MASKED = {
    "dream": {"logits_mask_and_positions": "position_ids"},
    "a2d_qwen2": {"logits_mask_logical_positions": None, "logits_mask_arange_positions": "arange"},
    "a2d_qwen3": {"logits_mask_logical_positions": None, "logits_mask_arange_positions": "arange"},
    "llada": {"logits_key_mask": None},
    "illada_like": {"logits_key_mask": None},
}
"""Recorded logits of padded rows, and the positions that they were computed with; None = those of the family."""


def opened(name: str, **options):
    return AutoModel.from_pretrained(family_golden(name), **options).eval(), load_file(
        family_golden(name) / "golden.safetensors"
    )


def block_causal(name: str):
    return opened(name, attention="block_causal", block_size=8)


@pytest.mark.smoke
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_logits_match_the_public_code(name):
    model, arrays = opened(name)
    ids, mask = arrays["input_ids"], arrays["attention_mask"]
    assert_rounding(model(ids).logits, arrays["logits_no_mask"])
    for recorded, positions in MASKED[name].items():
        given = {None: None, "arange": torch.arange(ids.shape[1])}.get(positions, arrays.get(positions))
        logits = model(ids, attention_mask=mask, position_ids=given).logits
        assert_rounding(logits[mask.bool()], arrays[recorded][mask.bool()])


@pytest.mark.parametrize("name", ["a2d_qwen2", "a2d_qwen3"])
@torch.no_grad()
def test_block_causal_logits_match_the_public_code(name):
    model, arrays = block_causal(name)
    assert_rounding(model(arrays["input_ids"]).logits, arrays["logits_block_causal"])


@pytest.mark.parametrize("name", ["dream", "llada", "illada_like"])
@torch.no_grad()
def test_bf16_logits_match_the_public_code(name):
    model, arrays = opened(name, dtype=torch.bfloat16)
    recorded = arrays["bf16.logits_no_mask"].float()
    error = (model(arrays["input_ids"]).logits - recorded) / recorded.abs().max()
    assert float(error.abs().max()) <= BF16_MAX and float(error.pow(2).mean().sqrt()) <= BF16_RMS


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_checkpoint_keeps_its_published_names(name, tmp_path):
    """Saved again it has the same keys, and its configuration every field but those that name code."""
    model, arrays = opened(name)
    model.save_pretrained(tmp_path)
    assert (
        load_file(tmp_path / "model.safetensors").keys() == load_file(family_golden(name) / "model.safetensors").keys()
    )
    published, saved = (json.loads((at / "config.json").read_text()) for at in (family_golden(name), tmp_path))
    lost = {key: value for key, value in published.items() if saved.get(key) != value}
    assert lost.keys() <= {
        "architectures",
        "auto_map",
        "transformers_version",
        "torch_dtype",
        "rope_scaling",
        "sliding_window",
    }
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(arrays["input_ids"]).logits, model(arrays["input_ids"]).logits)
