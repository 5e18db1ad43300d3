"""Norm and gated activation whose outcome is computed again in the backward, instead of being kept.

Both are elementwise, so that computing them twice costs a few percent of a step. Kept are their inputs, which the layers
around them hold anyway, and one number a position.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``weight * hidden / sqrt(mean(hidden ** 2) + eps)`` of ``hidden [..., d]`` and ``weight [d]``.

    Statistics are fp32, and the quotient is cast back before the weight is applied.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        if _kept_by_others(hidden, weight):
            return _normed(hidden, weight, _inverse_root(hidden, eps))
        return _RMSNorm.apply(hidden, weight, eps)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, elementwise."""
    return _gated(gate, up) if _kept_by_others(gate, up) else _SwiGLU.apply(gate, up)


def computed_again(outcome: Tensor) -> AbstractContextManager[Any]:
    """Whoever keeps ``outcome`` of one of the two for a backward, inside of this, gets it computed when it is wanted.

    Others' hooks, such as a checkpoint's, say themselves what is kept: there this does nothing.
    """
    if _kept_by_others(outcome) or _others_hooks():
        return nullcontext()
    node, place = outcome.grad_fn, _place(outcome)
    function = getattr(node, "_forward_cls", None)
    if function not in (_RMSNorm, _SwiGLU):
        return nullcontext()

    def keep(saved: Tensor) -> Tensor | torch.Size:
        return saved.shape if saved.is_contiguous() and _place(saved) == place else saved

    def give(kept: Tensor | torch.Size) -> Tensor:
        return function.formula(*node.saved_tensors).view(kept) if isinstance(kept, torch.Size) else kept

    return torch.autograd.graph.saved_tensors_hooks(keep, give)


def _others_hooks() -> bool:
    """Whether somebody looks after saved tensors already: hooks inside of theirs would hide all from them."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None


def _place(tensor: Tensor) -> tuple[int, int, int]:
    """What two views of the same numbers have in common, of tensors without memory too."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.numel()


def _kept_by_others(*tensors: Tensor) -> bool:
    """Whether nothing is kept anyway, or a compiler decides what is."""
    return torch.compiler.is_compiling() or not (torch.is_grad_enabled() and any(own.requires_grad for own in tensors))


def _inverse_root(hidden: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(hidden.float().pow(2).mean(-1, keepdim=True) + eps)


def _normed(hidden: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return weight * (hidden.float() * scale).to(hidden.dtype)


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


class _RMSNorm(torch.autograd.Function):
    formula = staticmethod(_normed)

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = _inverse_root(hidden, eps)
        ctx.save_for_backward(hidden, weight, scale)
        return _normed(hidden, weight, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """With n = hidden scale and g = grad weight: ``scale (g - n mean(g n))`` and the sum of ``grad n``."""
        hidden, weight, scale = ctx.saved_tensors
        normed = hidden.float() * scale
        of_hidden = of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (grad * normed.to(hidden.dtype)).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            scaled = (grad * weight).to(hidden.dtype).float()
            along = (scaled * normed).mean(-1, keepdim=True)
            of_hidden = scaled.sub_(normed.mul_(along)).mul_(scale).to(hidden.dtype)
        return of_hidden, of_weight, None


class _SwiGLU(torch.autograd.Function):
    formula = staticmethod(_gated)

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """``grad up silu'(gate)`` and ``grad silu(gate)``."""
        gate, up = ctx.saved_tensors
        of_gate = torch.ops.aten.silu_backward(grad * up, gate) if ctx.needs_input_grad[0] else None
        return of_gate, grad * F.silu(gate) if ctx.needs_input_grad[1] else None
