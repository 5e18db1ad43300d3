"""Which numbers are fp32 and which bf16 at each boundary of a model, and the head's product of bf16 operands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from unigrpo.models import head as head_module
from unigrpo.models.head import VocabularyHead
from unigrpo.models.llada.modeling import LLaDABlock, RMSNorm
from unigrpo.types import TokenSpace

from ..support.heads import relative
from ..support.tiny import tiny_model


SPACE = TokenSpace(start=3, stop=203, exclude=(100,))
STEP = 2**-8
"""One step of bf16 at 1."""


# ---- the head ----


def bf16_head(frozen: bool) -> tuple[VocabularyHead, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = VocabularyHead(64, 256, bias=False, dtype=torch.bfloat16)
    head.requires_grad_(not frozen)
    with torch.no_grad():
        head.weight.copy_(torch.randn(256, 64, generator=generator) / 4)
    hidden = torch.randn(9, 64, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(SPACE.start, 100, (9,), generator=generator)
    return head, hidden, targets


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The head takes the way of a device; ``product`` upcasts here, because a CPU has no kernel for it. Its calls."""
    calls: list[tuple[torch.dtype, ...]] = []

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        calls.append((left.dtype, right.dtype))
        return left.float() @ right.float()

    monkeypatch.setattr(head_module, "on_host", lambda tensor: False)
    monkeypatch.setattr(head_module, "product", product)
    return calls


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
@pytest.mark.parametrize("reference", [False, True], ids=["estimate", "exact KL"])
def test_the_heads_product_of_bf16_operands_gives_fp32_scores(frozen, reference, as_on_a_gpu, monkeypatch):
    """The forward is that of upcast operands; gradients differ by the rounding of their own dtype."""
    head, hidden, targets = bf16_head(frozen)
    ref = torch.randn(9, 200, generator=torch.Generator().manual_seed(1)).log_softmax(-1) if reference else None

    def scored() -> tuple[Any, torch.Tensor, torch.Tensor | None]:
        hidden.grad = head.weight.grad = None
        scores = head(hidden, targets, SPACE, 0.8, ref)
        (scores.logps.sum() + (0.0 if scores.kl is None else scores.kl.sum())).backward()
        return scores, hidden.grad, head.weight.grad

    found, slope, weight_slope = scored()
    assert as_on_a_gpu and set(as_on_a_gpu) == {(torch.bfloat16, torch.bfloat16)}
    monkeypatch.undo()
    expected, known, weight_known = scored()
    assert found.logps.dtype == torch.float32 and slope.dtype == torch.bfloat16
    assert torch.equal(found.entropy, expected.entropy) or relative(found.entropy, expected.entropy.double()) < 1e-6
    assert relative(found.logps.detach(), expected.logps.detach().double()) < 1e-6
    assert relative(slope, known.double()) < 2 * STEP
    if not frozen:
        assert relative(weight_slope, weight_known.double()) < STEP


def test_guided_hidden_states_keep_their_digits(as_on_a_gpu):
    """They are fp32, combined of two branches: rounded to bf16 they would lose what guidance amplifies."""
    head, hidden, _ = bf16_head(frozen=True)
    combined = 2.5 * hidden.detach().float() + 1e-4
    found = head(combined, token_space=SPACE)
    assert not as_on_a_gpu
    exact = (combined.double() @ head.weight.double().T)[:, SPACE.start : SPACE.stop]
    inside = SPACE.contains(torch.arange(SPACE.start, SPACE.stop))
    assert relative(found[:, inside], exact[:, inside]) < 1e-6


@pytest.mark.gpu
def test_the_gpus_product_is_the_upcast_one():
    from unigrpo.models.placing import product

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 4096, generator=generator).bfloat16().cuda() for _ in range(2))
    found = product(left, right.T)
    assert found.dtype == torch.float32
    assert relative(found, left.double() @ right.double().T) < 1e-5


# ---- the flow of dtypes ----


def boundaries(model: nn.Module, run: Any) -> dict[str, set[torch.dtype]]:
    """Dtypes that each kind of module returns while ``run()`` is running."""
    seen: dict[str, set[torch.dtype]] = {}
    hooks = []
    for name, module in model.named_modules():
        kind = "head" if isinstance(module, VocabularyHead) else type(module).__name__
        if kind == "Linear":
            kind = name.rpartition(".")[2]

        def look(_: nn.Module, __: Any, output: Any, kind: str = kind) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            own = {tensor.dtype for tensor in tensors if isinstance(tensor, torch.Tensor)}
            seen.setdefault(kind, set()).update(own)

        hooks.append(module.register_forward_hook(look))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


HALF, FULL = {torch.bfloat16}, {torch.float32}


def scores_of(model: nn.Module) -> Any:
    ids = torch.arange(24).view(2, 12) + 3
    select = torch.zeros(2, 12, dtype=torch.bool)
    select[:, 4:8] = True
    return model(input_ids=ids, select=select, targets=ids[select], token_space=SPACE)


def test_bf16_weights_compute_in_bf16_and_score_in_fp32():
    model = tiny_model(torch.bfloat16).train()
    seen = boundaries(model, lambda: scores_of(model).logps.sum().backward())
    assert {kind for kind, own in seen.items() if own == FULL} == {"head"}
    halves = {
        *[
            "Embedding",
            "RMSNorm",
            "LLaDABlock",
            "q_proj",
            "k_proj",
            "v_proj",
            "attn_out",
            "ff_proj",
            "up_proj",
            "ff_out",
        ]
    }
    assert {kind for kind, own in seen.items() if own == HALF} >= halves
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == HALF


@pytest.mark.smoke
def test_autocast_multiplies_in_bf16_and_keeps_what_must_be_fp32():
    """fp32 weights under ``torch.autocast``: matrix products in bf16, residual stream, norms, head and gradients in fp32."""
    model = tiny_model().train()

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = scores_of(model)
        assert scores.logps.dtype == scores.entropy.dtype == torch.float32
        scores.logps.sum().backward()

    seen = boundaries(model, run)
    for kind in ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"):
        assert seen[kind] == HALF, kind
    for kind in ("Embedding", "RMSNorm", "LLaDABlock", "head"):
        assert seen[kind] == FULL, kind
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == FULL


def test_an_upcast_is_seen(monkeypatch):
    """A norm that returns fp32 would double the memory of every block: the table above finds it."""
    usual = RMSNorm.forward
    monkeypatch.setattr(RMSNorm, "forward", lambda self, hidden: usual(self, hidden).float())
    monkeypatch.setattr(
        LLaDABlock, "_heads", lambda self, states: states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
    )
    model = tiny_model(torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"):
        scores_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert boundaries(model, lambda: scores_of(model))["RMSNorm"] == FULL
