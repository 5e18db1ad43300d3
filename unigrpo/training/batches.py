"""Cutting a window into units of compute, and collating one of them.

A unit is a set of rows of one task and one length bucket, with one noise draw each, or with all of a row's draws where
the algorithm mixes them. A window is cut once; old, reference and
every inner update use the same units, so that the same rows share a forward every time (a row alone and the same row in
another batch differ by about 1e-6, which would break "ratio exactly 1").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..algorithm.likelihood import Known, check_targets
from ..models.base import DiffusionPolicy
from ..models.placing import upload
from ..types import Canvas, Experience


BUCKET = 64
"""Rows whose lengths round up to the same multiple of this may share a unit; padding is at most that many tokens."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Indices into the window's rows, and the noise draw, None for all draws of each row together.

    A dummy unit has weight 0: it only keeps ranks in step.
    """

    rows: tuple[int, ...]
    draw: int | None
    dummy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixing:
    """What cutting has to know of a task's algorithm.

    Attributes:
        beta: weight of its KL.
        mixes_draws: the draws of a row become one log-likelihood before the ratio.
        tokenwise: every token has a term of its own, so that draws which share no token may run apart all the same.
    """

    beta: float = 0.0
    mixes_draws: bool = False
    tokenwise: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One unit at one inner update, padded to its longest row: everything ``score_tokens`` and the loss need.

    Shapes are ``[m, L]`` with m = b rows x their draws, a row's draws adjacent; ``advantages``, ``completion_length``,
    ``scored_tokens`` and ``scale`` are ``[b]``. ``old_logps`` is None while the policy has not moved, ``ref_logps`` where
    there is no reference. ``scored_tokens`` counts the tokens of a row that the unit's draw scores, or all of its draws
    where they are mixed. ``scale`` is what a row's loss is multiplied with: 1 / its draws where each has a loss of its
    own, else 1; 0 in dummy units. ``sampling_logps`` are None where no log-probabilities of the policy that sampled are
    known to compare them with. ``tokens_per_row`` is ``Window.tokens_per_row``'s. ``known`` is what the host knows of the batch, and
    ``ratios`` how many tokens are scored by any draw of their row; both were counted before anything left the CPU.
    """

    canvas: Canvas
    hidden: Tensor
    target: Tensor
    weight: Tensor
    noisy_ids: Tensor | None
    old_logps: Tensor | None
    ref_logps: Tensor | None
    advantages: Tensor
    completion_length: Tensor
    scored_tokens: Tensor
    scale: Tensor
    known: Known
    ratios: int
    dummy: bool = False
    sampling_logps: Tensor | None = None
    tokens_per_row: float | None = None


def bucket(row: Experience, policy: DiffusionPolicy) -> int:
    """Rows of one task and one bucket may share a unit; rows that attend to their padding need equal lengths."""
    length = len(row.ids)
    return length if policy.attends_padding else -(-length // BUCKET)


def moves_policy(row: Experience, mixing: dict[str, Mixing]) -> bool:
    """False for a row without a reward, and for an advantage of 0 where its task has no KL term."""
    return row.active and (row.advantage != 0 or mixing[row.task].beta != 0)


def cut_units(
    rows: list[Experience], micro_batches: list[list[int]], policy: DiffusionPolicy, mixing: dict[str, Mixing]
) -> list[list[Unit]]:
    """The units of each micro-batch. Rows that cannot move the policy are left out.

    A unit never holds more draws than its micro-batch has rows, one row's own draws aside.
    """
    cut = []
    for indices in micro_batches:
        groups: dict[tuple, list[int]] = {}
        for index in indices:
            row = rows[index]
            if not moves_policy(row, mixing):
                continue
            for draw in _draws(row, mixing[row.task]):
                groups.setdefault((row.task, bucket(row, policy), draw), []).append(index)
        units = []
        for (_, _, draw), members in sorted(groups.items()):
            if draw >= 0:
                units.append(Unit(tuple(members), draw))
                continue
            most = max(len(indices) // max(rows[index].target.shape[1] for index in members), 1)
            units += [Unit(tuple(members[i : i + most]), None) for i in range(0, len(members), most)]
        cut.append(units)
    return cut


def _draws(row: Experience, mixing: Mixing) -> list[int]:
    """The draws that need a unit each, or -1 for one unit with all of them."""
    used = row.target.any(dim=2).any(dim=0)
    overlap = bool((row.target.sum(dim=1) > 1).any())
    if mixing.mixes_draws and len(used) > 1 and (overlap or not mixing.tokenwise):
        return [-1] if bool(used.any()) else []
    return used.nonzero().squeeze(1).tolist()


def count_scored(row: Experience, k: int, mixes_draws: bool) -> float:
    """Tokens that update ``k`` scores in ``row``: of all draws together, or the mean over draws that score any."""
    if mixes_draws:
        return float(row.target[k].any(dim=0).sum())
    draws = int(row.target[k].any(dim=1).sum())
    return float(row.target[k].sum()) / max(draws, 1)


def pad_units(units: list[list[Unit]], counts: list[int], rows: list[Experience]) -> list[list[Unit]]:
    """Each micro-batch brought to ``counts`` units by repeating its shortest one (or row 0) with weight 0."""
    padded = []
    for own, count in zip(units, counts, strict=True):
        shortest = min(own, key=lambda unit: len(unit.rows) * len(rows[unit.rows[0]].ids), default=Unit((0,), 0))
        padded.append([*own, *[replace(shortest, dummy=True)] * (count - len(own))])
    return padded


def _stack(values: list[Tensor], length: int, fill: float | bool) -> Tensor:
    """Rows ``[L_i]`` padded on the right to ``[b, length]``."""
    out = torch.full((len(values), length), fill, dtype=values[0].dtype, device=values[0].device)
    for row, value in zip(out, values, strict=True):
        row[: len(value)] = value
    return out


def collate(
    window: list[Experience],
    unit: Unit,
    k: int,
    policy: DiffusionPolicy,
    device: torch.device | str,
    mixes_draws: bool = False,
) -> Batch:
    """``unit`` at inner update ``k``, on ``device``; ``mixes_draws`` as in ``Mixing``."""
    rows = [window[index] for index in unit.rows]
    length = max(len(row.ids) for row in rows)
    draws = [unit.draw] if unit.draw is not None else list(range(max(row.target.shape[1] for row in rows)))

    def stack(name: str, fill: float | bool = 0) -> Tensor:
        return _stack([getattr(row, name) for row in rows for _ in draws], length, fill)

    def drawn(name: str, fill: float | bool = 0) -> Tensor | None:
        if any(getattr(row, name) is None for row in rows):
            return None
        return _stack([_draw(getattr(row, name)[k], s) for row in rows for s in draws], length, fill)

    def moved(values: Tensor | None) -> Tensor | None:
        return None if values is None else upload(values, device)

    canvas = Canvas(
        ids=stack("ids", policy.pad_token_id),
        fill_mask=stack("fill_mask", False),
        attention_mask=stack("attention_mask", False),
        task=rows[0].task,
        token_space=rows[0].token_space,
        position_ids=None if rows[0].position_ids is None else stack("position_ids"),
        extra={key: torch.cat([row.extra[key] for row in rows for _ in draws]).cpu() for key in rows[0].extra},
    )
    old_known = all(row.old_known is not None and bool(row.old_known[k]) for row in rows)
    target = drawn("target", False)
    check_targets(canvas, target)
    counts = target.sum(dim=1).tolist()
    scored = [count_scored(row, k, True) for row in rows] if mixes_draws else counts
    # One copy of each field to the device, of what was made and counted on the CPU.
    return Batch(
        canvas=replace(canvas, **_uploaded(canvas, device)),
        hidden=moved(drawn("hidden", False)),
        target=moved(target),
        weight=moved(drawn("weight")),
        noisy_ids=moved(drawn("input_ids", policy.pad_token_id)),
        old_logps=moved(drawn("old_logps")) if old_known else None,
        ref_logps=moved(drawn("ref_logps")),
        advantages=upload([row.advantage for row in rows], device, torch.float32),
        completion_length=upload([float(row.completion_mask.sum()) for row in rows], device, torch.float32),
        scored_tokens=upload([float(count) for count in scored], device, torch.float32),
        scale=upload([_scale(row, unit, k, mixes_draws) for row in rows], device, torch.float32),
        known=Known(counts=counts, padded=not bool(canvas.attention_mask.all())),
        ratios=int(target.view(len(rows), len(draws), length).any(dim=1).sum()),
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


def _scale(row: Experience, unit: Unit, k: int, mixes_draws: bool) -> float:
    if unit.dummy:
        return 0.0
    return 1.0 if mixes_draws else 1.0 / max(int(row.target[k].any(dim=-1).sum()), 1)
