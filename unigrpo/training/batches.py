"""Cutting a window into units of compute, and collating one of them.

A unit is a set of experiences of one task and one length bucket, with one noise draw each, or with all of their draws where
the algorithm mixes them. A window is cut once; old, reference and every inner update use the same units, so that the same
ones share a forward every time (one alone and the same in another batch differ by about 1e-6, which would break "ratio
exactly 1").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..algorithm.likelihood import check_targets, score_tokens
from ..algorithm.loss import LossBatch
from ..models.base import DiffusionPolicy
from ..models.draw import TokenScores
from ..models.placing import upload
from ..types import Canvas, Experience, Guidance


BUCKET = 64
"""Experiences whose lengths round up to the same multiple of this may share a unit; padding is at most that many tokens."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Indices into the window's experiences, and the noise draw, None for all draws of each together.

    A dummy unit has weight 0: it only keeps ranks in step.
    """

    indices: tuple[int, ...]
    draw: int | None
    dummy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(LossBatch):
    """One unit at one inner update, padded to its longest row: what the loss is told, and what the forward needs.

    Shapes are ``[m, L]`` with m = b rows x their draws, a row's draws adjacent. ``old_logps`` is None while nobody has asked
    for them or the policy has not moved, ``ref_logps`` where there is no reference. ``scored_tokens`` counts the tokens of a
    row that the unit's draw scores, or all of its draws where they are mixed. ``tokens_per_row`` is
    ``Window.tokens_per_row``'s.

    Attributes:
        hidden: True = corrupted.
        noisy_ids: the corrupted canvas, for policies without a mask id.
        sampling_logps: None where no log-probabilities of the policy that sampled are known to compare them with.
        scale: ``[b]``, what a row's loss is multiplied with: 1 / its draws where each has a loss of its own, else 1; 0 in
            dummy units.
        counts, padded: scored tokens of each of the m, and whether any has padding; with ``ratios``, the tokens that are
            scored by any draw of their row, they were counted before anything left the CPU.
    """

    canvas: Canvas
    hidden: Tensor
    noisy_ids: Tensor | None
    sampling_logps: Tensor | None
    scale: Tensor
    counts: list[int]
    padded: bool
    ratios: int
    dummy: bool = False


def bucket(experience: Experience, policy: DiffusionPolicy) -> int:
    """Those of one task and one bucket may share a unit; where padding is attended their lengths must be equal."""
    length = len(experience.ids)
    return length if policy.attends_padding else -(-length // BUCKET)


def cut_units(
    experiences: list[Experience], draws: list[list[int]], micro_batches: list[list[int]], policy: DiffusionPolicy
) -> list[list[Unit]]:
    """The units of each micro-batch, whose ``draws`` are each experience's ``unit_draws``, none of one that is left out.

    A unit never holds more draws than its micro-batch has rows, one row's own draws aside.
    """
    cut = []
    for indices in micro_batches:
        groups: dict[tuple, list[int]] = {}
        for index in indices:
            own = experiences[index]
            for draw in draws[index]:
                groups.setdefault((own.task, bucket(own, policy), draw), []).append(index)
        units = []
        for (_, _, draw), members in sorted(groups.items()):
            if draw >= 0:
                units.append(Unit(tuple(members), draw))
                continue
            most = max(len(indices) // max(experiences[index].target.shape[1] for index in members), 1)
            units += [Unit(tuple(members[i : i + most]), None) for i in range(0, len(members), most)]
        cut.append(units)
    return cut


def unit_draws(experience: Experience, mixes_draws: bool = False, tokenwise: bool = True) -> list[int]:
    """The draws that need a unit each, or -1 for one unit with all of them.

    Args:
        mixes_draws: the draws of a row become one log-likelihood before the ratio.
        tokenwise: every token has a term of its own, so that draws which share no token may run apart all the same.
    """
    used = experience.target.any(dim=2).any(dim=0)
    overlap = bool((experience.target.sum(dim=1) > 1).any())
    if mixes_draws and len(used) > 1 and (overlap or not tokenwise):
        return [-1] if bool(used.any()) else []
    return used.nonzero().squeeze(1).tolist()


def count_scored(experience: Experience, k: int, mixes_draws: bool) -> float:
    """Tokens that update ``k`` scores: of all draws together, or the mean over draws that score any."""
    if mixes_draws:
        return float(experience.target[k].any(dim=0).sum())
    draws = int(experience.target[k].any(dim=1).sum())
    return float(experience.target[k].sum()) / max(draws, 1)


def pad_units(units: list[list[Unit]], counts: list[int], experiences: list[Experience]) -> list[list[Unit]]:
    """Each micro-batch brought to ``counts`` units by repeating its shortest one (or the first experience) with weight 0."""
    padded = []
    for own, count in zip(units, counts, strict=True):
        shortest = min(
            own, key=lambda unit: len(unit.indices) * len(experiences[unit.indices[0]].ids), default=Unit((0,), 0)
        )
        padded.append([*own, *[replace(shortest, dummy=True)] * (count - len(own))])
    return padded


def _stack(values: list[Tensor], length: int, fill: float | bool) -> Tensor:
    """Rows ``[L_i]`` padded on the right to ``[b, length]``."""
    out = torch.full((len(values), length), fill, dtype=values[0].dtype, device=values[0].device)
    for row, value in zip(out, values, strict=True):
        row[: len(value)] = value
    return out


def collate(
    experiences: list[Experience],
    unit: Unit,
    k: int,
    policy: DiffusionPolicy,
    device: torch.device | str,
    mixes_draws: bool = False,
) -> Batch:
    """``unit`` at inner update ``k``, on ``device``; ``mixes_draws`` as in ``unit_draws``."""
    members = [experiences[index] for index in unit.indices]
    length = max(len(own.ids) for own in members)
    draws = [unit.draw] if unit.draw is not None else list(range(max(own.target.shape[1] for own in members)))

    def stack(name: str, fill: float | bool = 0) -> Tensor:
        return _stack([getattr(own, name) for own in members for _ in draws], length, fill)

    def drawn(name: str, fill: float | bool = 0) -> Tensor | None:
        if any(getattr(own, name) is None for own in members):
            return None
        return _stack([_draw(getattr(own, name)[k], s) for own in members for s in draws], length, fill)

    def moved(values: Tensor | None) -> Tensor | None:
        return None if values is None else upload(values, device)

    canvas = Canvas(
        ids=stack("ids", policy.pad_token_id),
        fill_mask=stack("fill_mask", False),
        attention_mask=stack("attention_mask", False),
        task=members[0].task,
        token_space=members[0].token_space,
        position_ids=None if members[0].position_ids is None else stack("position_ids"),
        extra={key: torch.cat([own.extra[key] for own in members for _ in draws]).cpu() for key in members[0].extra},
    )
    target = drawn("target", False)
    check_targets(canvas, target)
    counts = target.sum(dim=1).tolist()
    scored = [count_scored(own, k, True) for own in members] if mixes_draws else counts
    # One copy of each field to the device, of what was made and counted on the CPU.
    return Batch(
        canvas=replace(canvas, **_uploaded(canvas, device)),
        hidden=moved(drawn("hidden", False)),
        target=moved(target),
        weight=moved(drawn("weight")),
        noisy_ids=moved(drawn("input_ids", policy.pad_token_id)),
        old_logps=moved(drawn("old_logps")) if all(own.knows_old(k) for own in members) else None,
        ref_logps=moved(drawn("ref_logps")),
        advantages=upload([own.advantage for own in members], device, torch.float32),
        completion_length=upload([float(own.completion_mask.sum()) for own in members], device, torch.float32),
        scored_tokens=upload([float(count) for count in scored], device, torch.float32),
        scale=upload([_scale(own, unit, k, mixes_draws) for own in members], device, torch.float32),
        counts=counts,
        padded=not bool(canvas.attention_mask.all()),
        ratios=int(target.view(len(members), len(draws), length).any(dim=1).sum()),
        dummy=unit.dummy,
        sampling_logps=moved(stack("sampling_logps")),
    )


def _uploaded(canvas: Canvas, device: torch.device | str) -> dict[str, Any]:
    tensors = {name: getattr(canvas, name) for name in ("ids", "fill_mask", "attention_mask", "position_ids")}
    moved = {name: None if own is None else upload(own, device) for name, own in tensors.items()}
    return {**moved, "extra": {key: upload(own, device) for key, own in canvas.extra.items()}}


def _draw(values: Tensor, s: int) -> Tensor:
    """Draw ``s`` of ``[S, L]``; zeros where the row has fewer."""
    return values[s] if s < len(values) else torch.zeros_like(values[0])


def _scale(experience: Experience, unit: Unit, k: int, mixes_draws: bool) -> float:
    if unit.dummy:
        return 0.0
    return 1.0 if mixes_draws else 1.0 / max(int(experience.target[k].any(dim=-1).sum()), 1)


def score_batch(
    model: Any,
    policy: DiffusionPolicy,
    batch: Batch,
    temperature: float = 1.0,
    guidance_scale: Guidance | None = None,
    ref_logprobs: Tensor | None = None,
    coefficients: Tensor | None = None,
) -> TokenScores:
    """``score_tokens`` of a batch."""
    noisy = (batch.canvas, batch.hidden, batch.target, batch.noisy_ids)
    return score_tokens(
        model,
        policy,
        *noisy,
        temperature,
        guidance_scale,
        ref_logprobs,
        counts=batch.counts,
        padded=batch.padded,
        coefficients=coefficients,
    )
