"""Log-probabilities of masked tokens under a policy. Never sees a loss."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..models.base import DiffusionPolicy
from ..models.draw import TokenScores
from ..models.head import normalised
from ..models.placing import places_of
from ..types import Canvas, Guidance


def check_targets(canvas: Canvas, target: Bool[Tensor, "b L"]) -> None:
    """Raises ``ValueError`` where a token to be scored lies outside the canvas's token space."""
    if not bool(canvas.token_space.contains(canvas.ids[target]).all()):
        raise ValueError(f"a scored token lies outside the token space {canvas.token_space} of task {canvas.task!r}")


def score_tokens(
    model,
    policy: DiffusionPolicy,
    canvas: Canvas,
    hidden: Bool[Tensor, "b L"],
    target: Bool[Tensor, "b L"],
    noisy_ids: Int[Tensor, "b L"] | None = None,
    temperature: float = 1.0,
    guidance_scale: Guidance | None = None,
    ref_logprobs: Float[Tensor, "n W"] | None = None,
    counts: list[int] | None = None,
    padded: bool = True,
    coefficients: Float[Tensor, "b L"] | None = None,
) -> TokenScores:
    """log p(token | canvas with ``hidden`` positions corrupted) at ``target``, UniGRPO Eq. 3 (arXiv 2505.15809).

    Probabilities are normalised over ``canvas.token_space`` and divided by ``temperature``, as in the sampler. Of a model whose
    attention is in blocks, a token is scored behind the finished blocks before its own, of which nothing is hidden.

    Args:
        noisy_ids: the corrupted canvas itself (``random_corruption``), for policies without a mask id.
        guidance_scale: scores of the guided policy ``u + (s + 1)(c - u)``, or of a pair's; None = of the conditional model.
        ref_logprobs: ``token_logprobs`` of the reference on the same arguments, for the exact KL.
        counts: scored tokens of each row where the host knows them, so that it need not wait for the device to say them;
            whoever gives them has called ``check_targets``.
        padded: False where the host knows that no row has padding.
        coefficients: of each log-probability in a loss that is linear in them. Then ``total`` is their sum over all rows, and
            alone has a gradient, which is cheaper to make.

    Raises:
        ValueError: a scored token lies outside the token space, or a policy without a mask id was not given ``noisy_ids``.
    """
    if counts is None:
        check_targets(canvas, target)
    places = places_of(target, None if counts is None else sum(counts))
    tokens = canvas.ids.flatten()[places]
    request = _request(policy, canvas, hidden, target, noisy_ids, temperature, guidance_scale, counts, padded)
    if ref_logprobs is not None:
        request["ref_logprobs"] = ref_logprobs
    if coefficients is not None:
        request["coefficients"] = coefficients.flatten()[places]
    output = model(**request, targets=tokens)
    kl = None if ref_logprobs is None else _at(target, output.kl)
    total = None if coefficients is None else output.total
    return TokenScores(logps=_at(target, output.logps), entropy=_at(target, output.entropy), kl=kl, total=total)


@torch.no_grad()
def token_logprobs(
    model,
    policy: DiffusionPolicy,
    canvas: Canvas,
    hidden: Bool[Tensor, "b L"],
    target: Bool[Tensor, "b L"],
    noisy_ids: Int[Tensor, "b L"] | None = None,
    temperature: float = 1.0,
    guidance_scale: Guidance | None = None,
    counts: list[int] | None = None,
    padded: bool = True,
) -> Float[Tensor, "n W"]:
    """Log-probabilities of the whole token space at each of the n target positions, row-major; ``score_tokens``' law."""
    request = _request(policy, canvas, hidden, target, noisy_ids, temperature, guidance_scale, counts, padded)
    return normalised(model(**request).logits)


def _request(policy, canvas, hidden, target, noisy_ids, temperature, guidance_scale, counts, padded) -> dict[str, Any]:
    """The arguments of ``model.forward`` but the targets."""
    if policy.mask_token_id is None and noisy_ids is None:
        raise ValueError(
            f"{type(policy).__name__} has no mask id, so the model would read the tokens to score: give noisy_ids, the "
            "canvas with random tokens at hidden (unigrpo.algorithm.noising.random_corruption)"
        )
    select = policy.rows(target)
    if guidance_scale is None:
        inputs = policy.likelihood_inputs(canvas, hidden, noisy_ids)
        if not padded and policy.mask_optional:
            inputs["attention_mask"] = None
    else:
        twins = policy.guidance_twins(canvas, guidance_scale)
        inputs = policy.guided_likelihood_inputs(canvas, hidden, noisy_ids, twins)
        select = torch.cat([select] * (1 + len(twins)))
        counts = None if counts is None else counts * (1 + len(twins))
    return {
        **inputs,
        "select": select,
        "counts": counts,
        "token_space": canvas.token_space,
        "temperature": temperature,
        "guidance_scale": guidance_scale,
    }


def _at(target: Bool[Tensor, "b L"], values: Float[Tensor, " n"]) -> Float[Tensor, "b L"]:
    """Row-major ``values`` placed at ``target``; differentiable."""
    place = torch.zeros(target.shape, dtype=values.dtype, device=values.device)
    return place.masked_scatter(target, values)
