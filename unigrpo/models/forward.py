"""The forward contract: what every policy's ``forward`` takes and returns, and an adapter for foreign models.

``model(**inputs, select=, counts=, targets=, token_space=, temperature=, guidance_scale=, ref_logprobs=, draw=, cache=,
coefficients=, asks=)``; the arguments are described at ``LLaDAForMaskedDiffusion.forward``. ``cache`` is for models whose policy says ``supports_cache``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from ..types import Guidance, TokenSpace
from .cache import GrowingCache, KeyValueCache
from .draw import Draw, choose_tokens, floored
from .elsewhere import OpensElsewhere, label_loss, labelled
from .head import check_temperature, gather_logps
from .inherited import refuse_swallowed
from .placing import places_of


@dataclass
class MaskedDiffusionOutput(ModelOutput):
    """fp32 ``logits``; of labels the ``loss``; of targets ``logps [n]``, ``entropy [n]`` and, with a reference, ``kl [n]``; or drawn
    ``tokens [n]`` with their ``logps [n]``, ``doubt [n]``, of a truncated draw ``kept [n]`` (see ``TokenScores``) and, where asked, ``entropy [n]`` and
    ``margin [n]``. With coefficients there
    is a ``total []``, which alone has a gradient. Of asks the ``answers``, logits of each.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    tokens: Tensor | None = None
    logps: Tensor | None = None
    entropy: Tensor | None = None
    kl: Tensor | None = None
    doubt: Tensor | None = None
    total: Tensor | None = None
    kept: Tensor | None = None
    margin: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    answers: tuple[Tensor, ...] | None = None


class Ask(NamedTuple):
    """What one of several readers of a forward wants of it: fp32 logits ``[n, W]`` of rows of its own.

    Attributes:
        select: ``[B, L]`` bool, as in ``LLaDAForMaskedDiffusion.forward``, and so the two others. No two readers select one row.
    """

    select: Tensor
    token_space: TokenSpace | None = None
    guidance_scale: Guidance | None = None


def combine_guidance(rows: Tensor, scale: Guidance) -> Tensor:
    """``u + (s + 1)(c - u)`` in fp32 for rows stacked as ``[c; u]``, ``[2n, ...] -> [n, ...]``; with two scales of rows ``[c; u; u']``,
    which have a third part where both are above 0, ``c + s (c - u) + s' (c - u')``.

    On logits this is classifier-free guidance; on hidden states it is the same wherever the head is linear. A column that is
    closed (-inf) in all stays closed.
    """
    scales = used_scales(scale)
    conditional, first, *others = floored(rows.float()).chunk(1 + len(scales))
    guided = first + (scales[0] + 1.0) * (conditional - first)
    for own, twin in zip(scales[1:], others, strict=True):
        guided = guided + own * (conditional - twin)
    return guided


def used_scales(scale: Guidance | None) -> tuple[float, ...]:
    """One scale a twin: of a pair those above 0, a single one as it is, none of None."""
    if scale is None:
        return ()
    return tuple(own for own in scale if own) if isinstance(scale, tuple) else (scale,)


def selected_by(asks: Sequence[Ask]) -> Tensor:
    """``[B, L]`` bool, the rows that any of ``asks`` wants."""
    return torch.stack([own.select for own in asks]).any(dim=0)


def answered(
    asks: Sequence[Ask], rows: Tensor, logits_of: Callable[[Tensor, TokenSpace | None], Tensor]
) -> tuple[Tensor, ...]:
    """The logits of each of ``asks``, from the ``rows [n, ...]`` that ``selected_by`` marks, row-major.

    Args:
        logits_of: of some rows, guided, over a token space.
    """
    marked, found = selected_by(asks), []
    for own in asks:
        mine = rows[own.select[marked]]
        mine = mine if own.guidance_scale is None else combine_guidance(mine, own.guidance_scale)
        found.append(logits_of(mine, own.token_space))
    return tuple(found)


def check_together(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    select: Tensor | None,
    targets: Tensor | None,
    draw: Draw | None,
) -> None:
    """Raises ``ValueError`` for arguments of a forward that do not go together."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    if (targets is not None or draw is not None) and select is None:
        raise ValueError("targets and draws need select, the [B, L] mask of the rows they belong to")


def within_span(
    cache: KeyValueCache | GrowingCache, counts: list[int] | None, *inputs: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The cache's columns of ``inputs [B, L, ...]``, the last of which marks the selected rows."""
    select, found = inputs[-1], tuple(None if own is None else cache.restrict(own) for own in inputs)
    # Who knows the counts has made the span of what it selects.
    if select is not None and counts is None and int(select.sum()) != int(found[-1].sum()):  # type: ignore[union-attr]
        raise ValueError(f"select marks rows outside the columns {cache.span} that the cache computes")
    return found


class MaskedDiffusionMixin(OpensElsewhere):
    """Gives a Hugging Face masked LM the forward contract: ``class Mine(MaskedDiffusionMixin, BertForMaskedLM): pass``.

    The wrapped ``forward`` must return ``.logits [B, L, V]``. Its logits are made in full, then selected.
    """

    def forward(
        self,
        *args,
        select: Tensor | None = None,
        targets: Tensor | None = None,
        token_space: TokenSpace | None = None,
        temperature: float = 1.0,
        guidance_scale: Guidance | None = None,
        ref_logprobs: Tensor | None = None,
        draw: Draw | None = None,
        counts: list[int] | None = None,
        coefficients: Tensor | None = None,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        asks: Sequence[Ask] | None = None,
        **kwargs,
    ) -> MaskedDiffusionOutput:
        """See ``LLaDAForMaskedDiffusion.forward`` for shapes and meanings.

        Raises:
            TypeError: an argument that the wrapped ``forward`` of transformers would swallow.
        """
        check_temperature(temperature)
        refuse_swallowed(super().forward, kwargs)
        if labels is not None:
            shift = getattr(getattr(self, "policy_class", None), "logit_shift", 0)
            select, targets = labelled(labels, shift, select=select, targets=targets, draw=draw)
        found = super().forward(*args, **kwargs)
        logits, states = found.logits, getattr(found, "hidden_states", None)
        if asks is not None:
            rows = logits[selected_by(asks)]
            return MaskedDiffusionOutput(answers=answered(asks, rows, _logits_over))
        if select is not None:
            logits = logits.flatten(0, 1)[places_of(select, None if counts is None else sum(counts))]
        if guidance_scale is not None:
            logits = combine_guidance(logits, guidance_scale)
        output = from_logits(logits, targets, token_space, temperature, ref_logprobs, draw, coefficients)
        if labels is not None:
            return MaskedDiffusionOutput(loss=label_loss(output.logps, labels, loss_weights))
        output.hidden_states = states if output.logits is not None else None
        return output


def _logits_over(rows: Tensor, space: TokenSpace | None) -> Tensor:
    """fp32 logits ``[n, W]`` of ``space``, from all of them ``[n, V]``."""
    found = from_logits(rows, None, space, 1.0, None, None, None).logits
    assert found is not None, "nothing else was asked for"
    return found


def from_logits(
    logits: Tensor,
    targets: Tensor | None,
    token_space: TokenSpace | None,
    temperature: float,
    ref_logprobs: Tensor | None,
    draw: Draw | None,
    coefficients: Tensor | None,
) -> MaskedDiffusionOutput:
    """What ``VocabularyHead`` answers, from logits ``[n, V]`` that are there in full; arguments as its ``forward``'s."""
    with torch.autocast(logits.device.type, enabled=False):
        rows, space = logits.float(), token_space or TokenSpace(start=0, stop=logits.shape[-1])
        rows = rows[..., space.start : space.stop] / temperature
        if space.exclude:
            closed = torch.tensor(space.exclude, device=rows.device) - space.start
            rows = rows.index_fill(-1, closed, torch.finfo(rows.dtype).min)
        if draw is not None:
            drawn = choose_tokens(rows, draw)
            return MaskedDiffusionOutput(
                tokens=drawn.tokens + space.start,
                logps=drawn.logps,
                entropy=drawn.entropy,
                doubt=drawn.doubt,
                kept=drawn.kept,
                margin=drawn.margin,
            )
        if targets is None:
            return MaskedDiffusionOutput(logits=rows)
        scores = gather_logps(rows, targets, space, ref_logprobs)
        if coefficients is None:
            return MaskedDiffusionOutput(logps=scores.logps, entropy=scores.entropy, kl=scores.kl)
        total = torch.where(coefficients != 0, coefficients * scores.logps, 0.0).sum()
        return MaskedDiffusionOutput(logps=scores.logps.detach(), entropy=scores.entropy, total=total)
