"""What saves memory changes no result: activation checkpointing, and a bf16 trunk under an fp32 head."""

from __future__ import annotations

import contextlib

import pytest
import torch
from peft import LoraConfig

from unigrpo.models import MMaDAForMaskedDiffusion
from unigrpo.models.adapters import add_adapter
from unigrpo.types import TokenSpace

from ..support.tiny import tiny_model


IDS = torch.arange(80).view(2, 40)
SELECT = torch.arange(80).view(2, 40) % 3 == 0
TARGETS = IDS[SELECT]


# ---- activation checkpointing ----


def deep_model(lora: bool):
    config = tiny_model().config
    config.n_layers = 12
    torch.manual_seed(0)
    model = add_adapter(MMaDAForMaskedDiffusion(config), LoraConfig(r=4, init_lora_weights=False) if lora else None)
    if lora:
        model.enable_input_require_grads()
    return model.train()


def step(model) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss, gradients, and the bytes that the forward keeps for the backward; weights are not counted."""
    kept, own = {}, {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = -model(input_ids=IDS, select=SELECT, targets=TARGETS).logps.mean()
    loss.backward()
    return float(loss), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_keeps_a_fraction_and_changes_nothing(lora, reentrant):
    plain, checkpointed = deep_model(lora), deep_model(lora)
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    loss, gradients, everything = step(plain)
    again, others, kept = step(checkpointed)
    assert again == loss and list(others) == list(gradients)
    for name, gradient in gradients.items():
        assert float(gradient.abs().max()) > 0
        assert torch.allclose(others[name], gradient, atol=1e-6 * float(gradient.abs().max())), name
    # A block of the tiny model keeps some twenty activations, a checkpointed one its input alone.
    assert kept < everything / 5


# ---- a bf16 trunk, an fp32 head ----


SPACE = TokenSpace(start=8, stop=190, exclude=(11,))


@pytest.mark.smoke
@pytest.mark.parametrize("how", ["stored", "autocast"])
@torch.no_grad()
def test_the_head_computes_in_fp32_from_bf16_states(how):
    model = tiny_model(torch.bfloat16 if how == "stored" else torch.float32)
    head, read = model.get_output_embeddings(), []
    head.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    targets = TARGETS.clamp(12, 189)
    request = {"input_ids": IDS, "select": SELECT, "token_space": SPACE}
    with torch.autocast("cpu", torch.bfloat16) if how == "autocast" else contextlib.nullcontext():
        logits = model(**request).logits
        scores = model(**request, targets=targets)
    assert {logits.dtype, scores.logps.dtype, scores.entropy.dtype} == {torch.float32}
    states = read[0]
    # Under autocast the layers round to bf16, and their sum stays in the dtype of the embedding.
    assert states.dtype == (torch.bfloat16 if how == "stored" else torch.float32) and torch.equal(states, read[1])
    weight = head.weight[SPACE.start : SPACE.stop]
    allowed = torch.arange(SPACE.width) != SPACE.exclude[0] - SPACE.start
    by_hand = states.double() @ weight.double().T
    assert torch.allclose(logits.double()[:, allowed], by_hand[:, allowed], atol=1e-5)
    assert (states.bfloat16() @ weight.bfloat16().T - by_hand)[:, allowed].abs().max() > 1e-3, "bf16 would be seen"
    expected = by_hand.masked_fill(~allowed, -torch.inf).log_softmax(dim=1).gather(1, (targets - SPACE.start)[:, None])
    assert torch.allclose(scores.logps.double(), expected.squeeze(1), atol=1e-5)
    plain = tiny_model()(**request).logits
    assert 1e-3 < float((logits - plain).abs().max()) < 0.5, "the trunk is rounded to bf16"
