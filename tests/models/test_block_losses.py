"""Fine-tuning losses of public code for models in blocks, on its own noise: BD3LM of dllm, SDAR's training forward."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from unigrpo.config.denoising_presets import objectives_of
from unigrpo.models import POLICIES, load_model
from unigrpo.models.decoder import A2DQwen2Policy, A2DQwen3Policy
from unigrpo.models.decoder.configuration import FOREIGN

from ..algorithm.test_denoising import loss
from ..support.tiny_decoders import decoder_tokenizer, family_golden
from ..support.tolerances import assert_rounding


pytestmark = pytest.mark.golden

BD3LM = {
    "a2d_qwen2": (9.581334114074707, 9.590978622436523, 188.43287658691406),
    "a2d_qwen3": (9.121587753295898, 8.800371170043945, 179.39122009277344),
}
"""Recorded with blocks of 8: the norms "token", "sequence" and "batch"."""

NORMS = ("answers", "answer", "none")


def opened(name: str, policy_class: type, **fields):
    """The golden's weights, its rows, and the policy, in blocks that begin with the row."""
    config_class = policy_class.model_class.config_class
    published = json.loads((family_golden(name) / "config.json").read_text())
    own = {key: value for key, value in published.items() if key not in ("model_type", *FOREIGN)}
    config = config_class(**{**own, "attention": "block_causal", **fields})
    model = policy_class.model_class.from_pretrained(family_golden(name), config=config, dtype=torch.float32).eval()
    return model, policy_class(config, decoder_tokenizer()), load_file(family_golden(name) / "golden.safetensors")


@pytest.mark.smoke
@pytest.mark.parametrize(("name", "policy_class"), [("a2d_qwen2", A2DQwen2Policy), ("a2d_qwen3", A2DQwen3Policy)])
def test_bd3lm_losses_of_the_public_code(name, policy_class):
    model, policy, arrays = opened(name, policy_class, mask_token_id=147, block_size=8)
    trained = arrays["loss.labels"] != -100
    for norm, recorded in zip(NORMS, BD3LM[name], strict=True):
        objective = objectives_of("bd3lm", {"denominator": norm})["text"]
        value = loss(
            model, policy, objective, arrays["loss.clean"], arrays["loss.noisy"], trained, arrays["loss.t"].double()
        )
        assert value.item() == pytest.approx(recorded, rel=1e-5)


def test_sdars_loss_and_gradient_of_the_public_code():
    """Its first row is packed from two samples: they are rows of their own here."""
    model, policy, arrays = opened("sdar", A2DQwen3Policy, block_size=4)
    names = ("clean", "noisy", "labels", "p_mask_at_masked")
    table = torch.stack([arrays[f"loss.{name}"].double() for name in names], dim=1)
    samples = [table[0, :, :10], table[0, :, 10:], table[1]]
    rows = torch.zeros(3, 4, 24, dtype=torch.float64)
    rows[:, 2] = -100
    for row, own in zip(rows, samples, strict=True):
        row[:, : own.shape[1]] = own
    clean, noisy, labels = rows[:, :3].long().unbind(dim=1)
    real = torch.arange(24) < torch.tensor([[own.shape[1]] for own in samples])
    objective, ratios = objectives_of("sdar")["text"], rows[:, 3].amax(dim=1)
    value = loss(model, policy, objective, clean, noisy, labels != -100, ratios, attention=real)
    assert value.item() == pytest.approx(arrays["loss.value"].item(), rel=1e-5)
    value.backward()
    assert_rounding(model.model.layers[0].self_attn.q_proj.weight.grad, arrays["loss.grad_q0"], 1e-4)


@pytest.mark.skipif("llada2_moe" not in POLICIES, reason="LLaDA2's network is not there: merge the family first")
def test_dfactorys_loss_and_gradient_of_the_public_code():
    """The gradient reaches attention and a router through the noisy and the clean copy."""
    model = load_model(str(family_golden("llada2_moe")), mask_token_id=151, block_size=8).float()
    arrays = load_file(family_golden("llada2_moe") / "golden.safetensors")
    policy = POLICIES["llada2_moe"](model.config, decoder_tokenizer())
    clean, noisy = arrays["loss.clean"], arrays["loss.noisy"]
    trained = torch.arange(clean.shape[1]) >= arrays["loss.prompt_lengths"][:, None]
    value = loss(model, policy, objectives_of("dfactory")["text"], clean, noisy, trained, arrays["loss.t"].double())
    assert value.item() == pytest.approx(arrays["loss.value"].item(), rel=1e-5)
    value.backward()
    attention = model.model.layers[0].self_attn
    fused = torch.cat([own.weight.grad for own in (attention.q_proj, attention.k_proj, attention.v_proj)])
    assert_rounding(fused, arrays["loss.grad_qkv0"], 1e-4)
    assert_rounding(model.model.layers[1].mlp.gate.weight.grad, arrays["loss.grad_gate1"], 1e-4)
