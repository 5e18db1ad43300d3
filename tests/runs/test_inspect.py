"""``unigrpo inspect`` and ``load_model``: a checkpoint of any family is understood, and one of none is told the nearest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from unigrpo.models import load_model
from unigrpo.runs.cli import main

from ..support.tiny_decoders import decoder_tokenizer, family_golden, tiny_decoder


@pytest.fixture
def checkpoint(tmp_path):
    """A function that copies a golden checkpoint, with a tokenizer and with other fields in its configuration."""

    def copy(name: str, tokenizer: bool = True, **fields) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for file in ("config.json", "model.safetensors"):
            shutil.copyfile(family_golden(name) / file, folder / file)
        if tokenizer:
            decoder_tokenizer().save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))
        return str(folder)

    return copy


DREAM = """family       Dream: DreamPolicy, DreamForMaskedDiffusion
ids          mask 146, padding 123, stops (123, 148, 146); by config.json and the tokenizer
logits       those at position i are of token i + 1 (shift 1)
attention    full, padding is never attended
text tokens  0 to 149 but [146]
head         152 x 48, of its own
parameters   71,616
weights      39 tensors, all of them in their place
missing      nothing
"""


def inspected(capsys, *words: str) -> tuple[int, str]:
    status = main(["inspect", *words])
    shown = capsys.readouterr()
    return status, shown.out + shown.err


def test_a_whole_checkpoint_is_understood(checkpoint, capsys):
    assert inspected(capsys, checkpoint("dream")) == (0, DREAM)


def test_blocks_a_tied_head_and_a_shipped_model_are_told(checkpoint, capsys):
    fields = {"attention": "block_causal", "block_size": 8, "block_anchor": "prompt_end"}
    status, said = inspected(capsys, checkpoint("a2d_qwen3", **fields))
    assert status == 0 and "block-causal, blocks of 8 from the end of the prompt" in said
    assert "152 x 48, tied to the embedding" in said and "mask 149" in said
    status, said = inspected(capsys, "builtin:shapes")
    assert status == 0 and "t2i tokens" in said


def test_tensors_that_are_converted_are_told_by_their_published_names(checkpoint, capsys):
    folder = checkpoint("llada2_moe")
    status, said = inspected(capsys, folder)
    assert status == 0 and "weights      82 tensors, all of them in their place" in said
    assert "block-causal, blocks of 32 from the start of a row" in said
    status, said = inspected(capsys, checkpoint("sdar", model_type="newer"))
    assert status == 2 and "named as those of 'a2d-qwen3'" in said
    (Path(folder) / "config.json").write_text('{"model_type": "newer"}')
    status, said = inspected(capsys, folder)
    assert status == 2 and "its tensors are named as those of 'llada2_moe'" in said


def test_what_is_missing_is_said_with_status_2(checkpoint, capsys, tmp_path):
    folder = checkpoint("a2d_qwen2", tokenizer=False)
    status, said = inspected(capsys, folder)
    assert status == 2 and "missing     a tokenizer that can be read" in said and "mask None" in said
    weights = load_file(f"{folder}/model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    weights["model.norm.weight"] = torch.ones(3)
    save_file(weights, f"{folder}/model.safetensors")
    status, said = inspected(capsys, folder)
    assert status == 2
    assert (
        "missing ['model.layers.1.mlp.up_proj.weight']; shapes ['model.norm.weight is (3,) and must be (48,)']" in said
    )


def test_a_checkpoint_of_no_family_is_told_the_nearest(checkpoint, capsys):
    folder = checkpoint("a2d_qwen3", model_type="newer")
    status, said = inspected(capsys, folder)
    assert status == 2 and said.count("\n") == 1
    assert "model_type='newer' is no family of this library; its tensors are named as those of 'a2d-qwen3'" in said
    weights = {
        name.replace("q_norm", "q_scale"): own for name, own in load_file(f"{folder}/model.safetensors").items()
    }
    save_file(weights, f"{folder}/model.safetensors")
    with pytest.raises(
        ValueError,
        match=r"lacks model.layers.\*.self_attn.q_norm.weight and has model.layers.\*.self_attn.q_scale.weight besides",
    ):
        load_model(folder)


@torch.no_grad()
def test_load_model_needs_no_tokenizer_and_attends_as_the_family_does(checkpoint, tmp_path):
    ids = torch.arange(12)[None]
    model = load_model(checkpoint("dream", tokenizer=False), dtype="bfloat16")
    assert model.dtype is torch.bfloat16 and not model.training
    changed = ids.clone()
    changed[0, -1] = 77
    mask = torch.ones_like(ids)
    one, two = (model(input_ids=own, attention_mask=mask).logits for own in (ids, changed))
    assert bool((one != two).any(dim=-1).all()), "the first position sees the last"
    tiny_decoder("a2d-qwen3")[0].save_pretrained(tmp_path / "base")
    adapted = get_peft_model(
        load_model(tmp_path / "base"), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    assert torch.equal(load_model(tmp_path / "adapter")(ids).logits, adapted.eval()(ids).logits)
