"""Norm and gated activation of the blocks: values, gradients and memory against the plain formulas."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from unigrpo.models.llada.recomputed import computed_again, rms_norm, swiglu


def plain_norm(hidden, weight, eps):
    values = hidden.float()
    return weight * (values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps)).to(hidden.dtype)


def plain_swiglu(gate, up):
    return F.silu(gate) * up


def arguments(dtype, *sizes):
    generator = torch.Generator().manual_seed(0)
    return [(3 * torch.randn(size, generator=generator)).to(dtype).requires_grad_() for size in sizes]


def gradients(outcome, inputs):
    weights = torch.linspace(-1.0, 2.0, outcome.numel()).view_as(outcome).to(outcome.dtype)
    return torch.autograd.grad((outcome * weights).sum(), [own for own in inputs if own.requires_grad])


# Two roundings of bfloat16 in another order are 2 ** -7 apart; of fp32 sums of 8 numbers some 1e-6.
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 3e-6), (torch.bfloat16, 2**-6)])
@pytest.mark.parametrize("frozen", [(), (0,), (1,)], ids=["all", "first frozen", "second frozen"])
def test_values_and_gradients_are_those_of_the_plain_formulas(dtype, rtol, frozen):
    normed, gated = arguments(dtype, (2, 3, 8), (8,)), arguments(dtype, (2, 3, 8), (2, 3, 8))
    for own in frozen:
        normed[own].requires_grad_(False)
        gated[own].requires_grad_(False)
    for ours, plain, inputs, rest in ((rms_norm, plain_norm, normed, (1e-5,)), (swiglu, plain_swiglu, gated, ())):
        got, wanted = ours(*inputs, *rest), plain(*inputs, *rest)
        assert got.dtype == wanted.dtype and torch.equal(got, wanted)
        found, expected = gradients(got, inputs), gradients(wanted, inputs)
        for own, other in zip(found, expected, strict=True):
            assert own.dtype == other.dtype
            torch.testing.assert_close(own, other, rtol=0, atol=rtol * float(other.abs().max()))


@pytest.mark.parametrize("reentrant", [None, False, True], ids=["kept", "checkpoint", "reentrant checkpoint"])
@pytest.mark.parametrize(
    ("ours", "plain", "sizes", "rest"),
    [(rms_norm, plain_norm, [(2, 3, 8), (8,)], (1e-5,)), (swiglu, plain_swiglu, [(2, 3, 8), (2, 3, 8)], ())],
    ids=["norm", "swiglu"],
)
def test_an_outcome_is_computed_again_and_not_kept(ours, plain, sizes, rest, reentrant):
    """Two layers want it for their weights; nobody holds it after the forward, nor what a checkpoint would let go."""
    first, second = nn.Linear(8, 5), nn.Linear(8, 5)
    inputs, seen = arguments(torch.float32, *sizes), []

    def layers(function, *given):
        outcome = function(*given, *rest)
        with computed_again(outcome):
            between = first(outcome)
            seen.extend(
                weakref.ref(own.untyped_storage()) for own in (outcome, *([between] if reentrant is not None else ()))
            )
            return between * second(outcome)

    given = (ours, *inputs)
    got = layers(*given) if reentrant is None else checkpoint(layers, *given, use_reentrant=reentrant)
    assert all(own() is None for own in seen)
    leaves = (*inputs, *first.parameters(), *second.parameters())
    found, expected = (gradients_by_backward(own, leaves) for own in (got, layers(plain, *inputs)))
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


def gradients_by_backward(outcome, leaves):
    """Reentrant checkpoints know ``backward`` alone."""
    for own in leaves:
        own.grad = None
    outcome.square().sum().backward()
    return [own.grad for own in leaves]
