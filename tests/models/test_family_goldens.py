"""Other families' public code, number for number: logits, and checkpoints under their published names."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM

from unigrpo.config.denoising_presets import objectives_of
from unigrpo.models import LLaDAPolicy, MMaDAProcessor
from unigrpo.models.decoder import A2DQwen2Policy, A2DQwen3Policy, DreamPolicy
from unigrpo.models.decoder.configuration import FOREIGN
from unigrpo.samplers.parity import PublicDreamSampler, PublicTextSampler
from unigrpo.types import Canvas, TokenSpace

from ..algorithm.test_denoising import loss
from ..support.tiny import golden_tokenizer
from ..support.tiny_decoders import decoder_tokenizer, family_golden
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


@pytest.mark.parametrize("name", [*FAMILIES, "sdar", "llada2_moe"])
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
        *FOREIGN,
        "architectures",
        "transformers_version",
        "torch_dtype",
        "rope_scaling",
        "sliding_window",
    }
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(arrays["input_ids"]).logits, model(arrays["input_ids"]).logits)


# ---- greedy trajectories ----


def canvas_of(policy, prompt, length: int, mask=None) -> Canvas:
    """A canvas behind recorded prompts ``[B, P]``, on which every id of the vocabulary may be written, as in the public code."""
    real = torch.ones_like(prompt, dtype=torch.bool) if mask is None else mask.bool()
    holes = torch.ones(len(prompt), length, dtype=torch.bool)
    return Canvas(
        ids=torch.cat([prompt, torch.full(holes.shape, policy.mask_token_id)], dim=1),
        fill_mask=torch.cat([torch.zeros_like(real), holes], dim=1),
        attention_mask=torch.cat([real, holes], dim=1),
        task="text",
        token_space=TokenSpace(start=0, stop=policy.config.vocab_size),
    )


def trajectory(policy, rollout) -> torch.Tensor:
    """The ids after each step ``[steps, B, L]``."""
    written, filled = rollout.step_map, rollout.canvas.fill_mask
    steps = range(int(written.max()) + 1)
    return torch.stack(
        [rollout.canvas.ids.masked_fill(filled & (written > step), policy.mask_token_id) for step in steps]
    )


def walked(model, policy, sampler, canvas, seed: int = 0) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    policy.decode = lambda canvas, counts: [""] * len(canvas.ids)
    return trajectory(policy, sampler(model, policy, canvas, generators=[stream] * len(canvas.ids)))


LLADA = {
    "low_conf_1block": {"steps": 8, "block_length": 16},
    "low_conf_2blocks": {"steps": 10, "block_length": 8},
    "eos_inf": {"steps": 16, "block_length": 16, "logits_eos_inf": True},
    "eos_eot_conf_inf": {"steps": 8, "block_length": 16, "confidence_eos_eot_inf": True},
}


class Recorded(LLaDAPolicy):
    """Of ids alone: the recorded vocabulary is smaller than the tokenizer's, and no prompt is written."""

    def _wrapped(self, config, processor):
        return processor


@pytest.mark.parametrize("name", ["llada", "illada_like"])
@pytest.mark.parametrize("case", LLADA)
def test_greedy_llada_writes_what_the_public_code_writes(name, case):
    model, arrays = opened(name)
    policy = Recorded(model.config, MMaDAProcessor(golden_tokenizer()))
    policy.stop_token_ids = (121, 140)
    sampler = PublicTextSampler(**LLADA[case], temperature=0.0, stop="never")
    found = walked(model, policy, sampler, canvas_of(policy, arrays["gen.prompt"], 16))
    # Recorded before each step, and at the end.
    recorded = torch.cat([arrays[f"gen.{case}.history"][1:].long(), arrays[f"gen.{case}.out"][None]])
    assert torch.equal(found, recorded)


ORDERS = [(alg, rows) for alg in ("maskgit_plus", "topk_margin", "entropy") for rows in (1, 2)] + [("origin", 2)]


@pytest.mark.parametrize(("alg", "rows"), ORDERS)
def test_greedy_dream_writes_what_the_public_code_writes(alg, rows):
    model, arrays = opened("dream")
    policy = DreamPolicy(model.config, decoder_tokenizer())
    recorded = arrays[f"gen.{alg}.b{rows}.history"]
    sampler = PublicDreamSampler(alg=alg, steps=len(recorded), temperature=0.0, stop="never")
    canvas = canvas_of(policy, arrays["gen.prompt"][:rows], 12, arrays["gen.attention_mask"][:rows])
    assert torch.equal(walked(model, policy, sampler, canvas, 41002), recorded.long())


A2D = {
    "mdlm": ({}, {"steps": 8, "block_length": 8}),
    "mdlm_shift": ({"logit_shift": 1}, {"steps": 16, "block_length": 16}),
    "bd3lm": (
        {"attention": "block_causal", "block_size": 8, "block_anchor": "prompt_end"},
        {"steps": 16, "block_length": 8},
    ),
}
"""What the model and the sampler are told."""


@pytest.mark.parametrize(("name", "policy_class"), [("a2d_qwen2", A2DQwen2Policy), ("a2d_qwen3", A2DQwen3Policy)])
@pytest.mark.parametrize("case", A2D)
def test_greedy_a2d_writes_what_the_public_code_writes(name, policy_class, case):
    """Row by row: the public code pads to the right, or to whole blocks, and shows blocks that are not there yet as -1."""
    fields, settings = A2D[case]
    model, arrays = opened(name, mask_token_id=147, **fields)
    policy, mask = policy_class(model.config, decoder_tokenizer()), 147
    recorded = arrays[f"gen.{case}.history"][1:].long()
    for row in (0, 1):
        prompt = arrays[f"gen.prompt{row}"]
        start = 8 - len(prompt) if case == "bd3lm" else 0
        sampler = PublicTextSampler(**settings, temperature=0.0, stop="never")
        found = walked(model, policy, sampler, canvas_of(policy, prompt[None], 16))[:, 0]
        expected = recorded[:, row, start : start + len(prompt) + 16]
        # Steps that only draw mask ids leave nothing in the record.
        found = torch.cat([found, found[-1:].expand(len(expected) - len(found), -1)])
        # In blocks the public code no longer attends to a padding id once it has been written, which is a defect.
        kept = (
            ~(expected[:, len(prompt) :] == model.config.pad_token_id).any(dim=1) if case == "bd3lm" else slice(None)
        )
        assert torch.equal(found[kept], expected.masked_fill(expected == -1, mask)[kept]), row


# ---- losses of fine-tuning ----

MDLM = {
    "loss.mdlm_token": {},
    "loss.mdlm_sequence": {"denominator": "answer"},
    "loss.mdlm_batch": {"denominator": "none"},
}
LOSSES = {
    "dream": {
        "loss.original_1_over_t": ("dream", {}),
        "loss.linear_1_minus_t": ("dream_linear", {}),
        "loss.none": ("dream", {"weight": "mean"}),
        "loss.cart_0.1": ("dream_cart", {}),
        "loss.cart_0.3": ("dream_cart", {"cart_p": 0.3}),
        "loss.dllm_scheduler_token": ("mdlm", {}),
    },
    "a2d_qwen2": {name: ("mdlm", keys) for name, keys in MDLM.items()},
    "a2d_qwen3": {name: ("mdlm", keys) for name, keys in MDLM.items()},
    "llada": {"loss.pretrain": ("llada", {"denominator": "row"}), "loss.sft": ("llada", {})},
}
"""By recorded loss the preset and its keys."""

GRADIENTS = {
    "loss.original_1_over_t": "loss.original_grad_q0",
    "loss.mdlm_token": "loss.mdlm_token_grad_q0",
    "loss.sft": "loss.sft_grad_q0",
}
POLICIES_OF = {"dream": DreamPolicy, "a2d_qwen2": A2DQwen2Policy, "a2d_qwen3": A2DQwen3Policy, "llada": Recorded}


def noised_rows(name: str, arrays: dict, recorded: str) -> tuple:
    """Clean and noisy ids, trained tokens and mask ratios of a recorded batch."""
    clean = arrays["loss.clean"]
    if name != "llada":
        trained = arrays["loss.labels"] != -100 if "loss.labels" in arrays else arrays["loss.maskable"].bool()
        return clean, arrays["loss.noisy"], trained, arrays["loss.t"].double()
    ratios = arrays["loss.p_mask"][:, 0].double()
    if recorded == "loss.pretrain":
        return clean, arrays["loss.pretrain_noisy"], torch.ones_like(clean, dtype=torch.bool), ratios
    answer = torch.arange(clean.shape[1]) >= arrays["loss.prompt_lengths"][:, None]
    return clean, arrays["loss.sft_noisy"], answer, ratios


@pytest.mark.parametrize(("name", "recorded"), [(name, recorded) for name, own in LOSSES.items() for recorded in own])
def test_losses_of_the_public_code(name, recorded):
    preset, keys = LOSSES[name][recorded]
    model, arrays = opened(name, **({"mask_token_id": 147} if name.startswith("a2d") else {}))
    processor = MMaDAProcessor(golden_tokenizer()) if name == "llada" else decoder_tokenizer()
    policy = POLICIES_OF[name](model.config, processor)
    value = loss(model, policy, objectives_of(preset, keys)["text"], *noised_rows(name, arrays, recorded))
    assert value.item() == pytest.approx(arrays[recorded].item(), rel=1e-5)
    if recorded in GRADIENTS:
        value.backward()
        first = model.model.transformer.blocks[0] if name == "llada" else model.model.layers[0].self_attn
        assert_rounding(first.q_proj.weight.grad, arrays[GRADIENTS[recorded]], 1e-4)
