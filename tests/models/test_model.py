"""The MMaDA/LLaDA network: parity with the public code, checkpoint layout, masks, the forward contract."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel

from unigrpo.models import LLaDAConfig, LLaDAForMaskedDiffusion, MMaDAConfig, MMaDAForMaskedDiffusion
from unigrpo.models.llada import modeling
from unigrpo.types import TokenSpace

from ..support.tiny import GOLDENS, golden, tiny_config_fields, tiny_model
from ..support.tolerances import BF16_MAX, BF16_RMS, FP32, assert_rounding


pytestmark = pytest.mark.golden


BLOCK_TENSORS = ("attn_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_norm", "ff_proj", "up_proj", "ff_out")
TINY_LLADA = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 48, "vocab_size": 208}
PUBLISHED = json.loads((GOLDENS / "mmada_8b_config.json").read_text())
"""The fields of the published 8B checkpoint's config.json."""


@pytest.fixture(scope="module")
def model() -> MMaDAForMaskedDiffusion:
    return tiny_model()


@pytest.fixture(scope="module")
def g1() -> dict[str, torch.Tensor]:
    return golden("g1_forward")[0]


def worst(difference: torch.Tensor) -> float:
    return float(difference.detach().abs().max())


# ---- parity with the public forward ----


@pytest.mark.smoke
@torch.no_grad()
def test_logits_and_hidden_states_match_the_public_code(model, g1):
    ids, mask = g1["input_ids"], g1["attention_mask"]
    real = mask.bool()
    assert_rounding(model(ids).logits, g1["logits_no_bias"])
    assert_rounding(model(ids, attention_mask=torch.ones_like(mask)).logits, g1["logits_attention_mask_ones"])
    for given in (mask, real):
        masked = model(ids, attention_mask=given, output_hidden_states=True)
        assert_rounding(masked.logits[real], g1["logits_bool_bias"][real])
    for defect in ("logits_attention_mask_only", "logits_float01_bias"):
        assert worst((masked.logits - g1[defect])[real]) > 1.0
    assert len(masked.hidden_states) == 4
    for i, state in enumerate(masked.hidden_states):
        assert_rounding(state[real], g1[f"hidden_bool_bias_{i}"][real])


@torch.no_grad()
def bf16_error(g1: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Largest and root-mean-square error of bf16 logits, of the largest recorded one."""
    mask, recorded = g1["attention_mask"], g1["logits_bool_bias_bf16_as_f32"]
    logits = tiny_model(torch.bfloat16)(g1["input_ids"], attention_mask=mask).logits
    error = (logits - recorded)[mask.bool()] / worst(recorded)
    return worst(error), float(error.pow(2).mean().sqrt())


def test_bf16_matches_the_public_code_and_no_other_norm_order_or_rope_precision(g1, monkeypatch):
    largest, rms = bf16_error(g1)
    assert largest <= BF16_MAX and rms <= BF16_RMS
    for owner, name, other in (
        (modeling.RMSNorm, "forward", weight_before_cast),
        (modeling, "apply_rotary", rotary_in_input_dtype),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, other)
            largest, rms = bf16_error(g1)
            assert largest > BF16_MAX and rms > BF16_RMS, name


def weight_before_cast(self, hidden):
    values = hidden.float()
    values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + self.eps)
    return (self.weight.float() * values).to(hidden.dtype)


def rotary_in_input_dtype(states, cos, sin):
    first, second = states.chunk(2, dim=-1)
    return states * cos.to(states.dtype) + torch.cat([-second, first], dim=-1) * sin.to(states.dtype)


# ---- attention masks ----


@torch.no_grad()
def test_padding_leaks_and_cannot_be_trimmed_only_in_mode_none(g1):
    model, ids, mask = tiny_model(), g1["input_ids"], g1["attention_mask"]
    other = torch.where(mask.bool(), ids, (ids + 37) % 150)

    def content() -> float:
        """What other padding changes."""
        first, second = (model(own, attention_mask=mask).logits for own in (ids, other))
        return worst((first - second)[mask.bool()])

    def trimmed(row: int) -> float:
        """What a row without its padding changes."""
        padding = int((mask[row] == 0).sum())
        assert padding > 0
        whole = model(ids[row : row + 1], attention_mask=mask[row : row + 1]).logits
        return worst(whole[:, padding:] - model(ids[row : row + 1, padding:]).logits)

    assert content() == 0.0
    assert max(trimmed(1), trimmed(2)) <= FP32 * worst(g1["logits_no_bias"])
    model.config.attn_mask_mode = "none"
    assert min(content(), trimmed(1), trimmed(2)) > 0.1


@torch.no_grad()
def test_a_mask_with_zeros_never_makes_the_model_causal(model, g1):
    ids, mask = g1["input_ids"], g1["attention_mask"]
    assert mask[0].all() and not mask[1].all()
    masked = model(ids, attention_mask=mask).logits
    assert_rounding(masked[0], g1["logits_no_bias"][0])
    last_changed = ids.clone()
    last_changed[:, -1] = (ids[:, -1] + 1) % 150
    first_real = mask.argmax(1)
    moved = (model(last_changed, attention_mask=mask).logits - masked)[torch.arange(len(ids)), first_real]
    assert float(moved.abs().amax(1).min()) > 1e-3


def test_attention_kernels_stay_as_the_user_set_them():
    kernels = torch.backends.cuda
    assert kernels.mem_efficient_sdp_enabled() and kernels.flash_sdp_enabled()
    kernels.enable_mem_efficient_sdp(False)
    try:
        tiny_model()(torch.arange(4)[None])
        assert not kernels.mem_efficient_sdp_enabled()
    finally:
        kernels.enable_mem_efficient_sdp(True)


# ---- checkpoint layout ----


def published_names(n_layers: int) -> list[str]:
    inside = [f"blocks.{n}.{leaf}" for n in range(n_layers) for leaf in BLOCK_TENSORS]
    return sorted(f"model.transformer.{name}.weight" for name in ("wte", *inside, "ln_f", "ff_out"))


def tensor_names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


@pytest.mark.parametrize(
    ("family", "config", "parameters"),
    [(MMaDAForMaskedDiffusion, MMaDAConfig, 8_082_690_048), (LLaDAForMaskedDiffusion, LLaDAConfig, 8_015_581_184)],
)
def test_published_sizes_and_names_at_8b(family, config, parameters):
    with torch.device("meta"):
        model = family(config())
    state = model.state_dict()
    assert len(state) == 291 and sorted(state) == published_names(32) and not list(model.buffers())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in state.values()) == parameters
    prefix = "model.transformer.blocks.31."
    assert state[f"{prefix}ff_out.weight"].shape == (4096, 12288)
    assert state[f"{prefix}ff_proj.weight"].shape == state[f"{prefix}up_proj.weight"].shape == (12288, 4096)


def test_config_json_holds_every_published_field(tmp_path):
    MMaDAConfig(dtype="bfloat16").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {key: saved.get(key, "missing") for key in PUBLISHED} == PUBLISHED
    assert saved["num_vq_tokens"] == 1024
    assert MMaDAConfig.from_pretrained(tmp_path).to_dict() == MMaDAConfig(dtype="bfloat16").to_dict()


@torch.no_grad()
def test_sharded_round_trip_keeps_names_config_and_logits(model, g1, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert sorted(name for shard in shards for name in tensor_names(shard)) == published_names(3)
    assert sorted(tensor_names(GOLDENS / "mmada_tiny" / "model.safetensors")) == published_names(3)
    published, saved = (json.loads((own / "config.json").read_text()) for own in (GOLDENS / "mmada_tiny", tmp_path))
    changed = {key for key, value in published.items() if saved.get(key, "missing") != value}
    assert changed <= {"architectures", "transformers_version"}
    assert str(GOLDENS) not in json.dumps(saved), "a path of this machine has no place in a checkpoint"
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert type(again) is MMaDAForMaskedDiffusion and again.config.image_token_offset == 197
    assert torch.equal(again(g1["input_ids"]).logits, model(g1["input_ids"]).logits)


UNKNOWN = {"alibi": True, "block_type": "sequential", "attention_layer_norm": True}
UNKNOWN |= {"include_qkv_bias": True, "attn_mask_mode": "causal", "embedding_size": 300_000}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_architecture_variants_are_refused_by_name(name):
    for config in (LLaDAConfig, MMaDAConfig):
        with pytest.raises(ValueError, match=name):
            config(**{name: UNKNOWN[name]})


@torch.no_grad()
def test_a_published_llada_folder_loads_natively(tmp_path):
    torch.manual_seed(0)
    model = LLaDAForMaskedDiffusion(LLaDAConfig(**TINY_LLADA, mask_token_id=184, eos_token_id=161, pad_token_id=161))
    model.eval().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    fields["auto_map"] = {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"}
    fields["architectures"] = ["LLaDAModelLM"]
    del fields["attn_mask_mode"]
    path.write_text(json.dumps(fields))
    assert type(AutoConfig.from_pretrained(tmp_path)) is LLaDAConfig
    ids = torch.arange(20).view(2, 10)
    for loaded in (LLaDAForMaskedDiffusion.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is LLaDAForMaskedDiffusion
        assert loaded.config.mask_token_id == 184 and loaded.config.attn_mask_mode == "bool"
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


# ---- the forward contract ----


@torch.no_grad()
def test_selected_scores_are_slices_of_the_full_log_softmax(model, g1):
    ids, mask = g1["input_ids"], g1["attention_mask"]
    space, temperature = TokenSpace(start=3, stop=197, exclude=(161, 184)), 0.7
    select = (ids == 184) & mask.bool()
    full = model(ids, attention_mask=mask).logits.double()[select][:, 3:197] / temperature
    full[:, [161 - 3, 184 - 3]] = -torch.inf
    expected = full.log_softmax(-1)
    targets = torch.arange(len(full)) % 100 + 3
    out = model(ids, attention_mask=mask, select=select, targets=targets, token_space=space, temperature=temperature)
    assert worst(out.logps - expected[torch.arange(len(full)), targets - 3]) < 3e-5
    entropy = -(expected.exp() * expected.clamp(min=-1e9)).sum(-1)
    assert worst(out.entropy - entropy) < 3e-5
    assert out.logps.dtype == out.entropy.dtype == torch.float32
    logits = model(ids, attention_mask=mask, select=select, token_space=space, temperature=temperature).logits
    assert worst(logits.log_softmax(-1).exp() - expected.exp()) < 1e-5
    assert worst(logits[:, 0] - full[:, 0]) < 3e-5


def test_the_door_refuses_incomplete_arguments(model):
    ids = torch.arange(4)[None]
    with pytest.raises(ValueError, match="select"):
        model(ids, targets=torch.arange(4))
    with pytest.raises(ValueError, match="inputs_embeds"):
        model(ids, inputs_embeds=torch.zeros(1, 4, 64))


@torch.no_grad()
def test_embeddings_and_positions_can_be_given(model, g1):
    ids = g1["input_ids"]
    plain = model(ids).logits
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, plain)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    assert torch.equal(model(ids, position_ids=positions).logits, plain)
    assert_rounding(model(ids, position_ids=positions + 9).logits, plain)
    assert worst(model(ids, position_ids=positions * 2).logits - plain) > 0.1


def test_overrides_at_loading_are_checked_and_reach_derived_fields(model):
    assert model.config.special_token_ids == tiny_config_fields()["special_token_ids"]
    assert model.config.stop_token_ids == [161, 196]
    opened = partial(MMaDAForMaskedDiffusion.from_pretrained, GOLDENS / "mmada_tiny")
    for name, value in (("attn_mask_mode", "causal"), ("alibi", True)):
        with pytest.raises(ValueError, match=name):
            opened(**{name: value})
    other = opened(attn_mask_mode="none")
    assert other.config.attn_mask_mode == "none" and other.dtype == torch.float32
    assert tiny_model(torch.bfloat16).dtype == torch.bfloat16
