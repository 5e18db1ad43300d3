"""Log-probabilities of masked tokens under a policy. Never sees a loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .models.base import DiffusionPolicy
from .types import Canvas


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """``logps`` and ``entropy``, fp32 ``[b, L]`` in nats, 0 outside the target. Entropy has no gradient."""

    logps: Tensor
    entropy: Tensor


def score_tokens(
    model,
    policy: DiffusionPolicy,
    canvas: Canvas,
    hidden: Bool[Tensor, "b L"],
    target: Bool[Tensor, "b L"],
    noisy_ids: Int[Tensor, "b L"] | None = None,
    temperature: float = 1.0,
) -> TokenScores:
    """log p(token | canvas with ``hidden`` positions corrupted) at ``target``, UniGRPO Eq. 3 (arXiv 2505.15809).

    Probabilities are normalised over ``canvas.token_space`` and divided by ``temperature``, as in the sampler.

    Raises:
        ValueError: a scored token lies outside the token space.
    """
    tokens = canvas.ids[target]
    if not bool(canvas.token_space.contains(tokens).all()):
        raise ValueError(f"a scored token lies outside the token space {canvas.token_space} of task {canvas.task!r}")
    output = model(
        **policy.inputs(canvas, hidden, noisy_ids),
        select=policy.rows(target),
        targets=tokens,
        token_space=canvas.token_space,
        temperature=temperature,
    )
    return TokenScores(logps=_at(target, output.logps), entropy=_at(target, output.entropy))


def _at(target: Bool[Tensor, "b L"], values: Float[Tensor, " n"]) -> Float[Tensor, "b L"]:
    """Row-major ``values`` placed at ``target``; differentiable."""
    place = torch.zeros(target.shape, dtype=values.dtype, device=values.device)
    return place.masked_scatter(target, values)
