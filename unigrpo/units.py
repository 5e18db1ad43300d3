"""Cutting a window into units of compute, and collating one of them.

A unit is a set of rows of one task, one length bucket and one noise draw. A window is cut once; old, reference and
every inner update use the same units, so that the same rows share a forward every time (a row alone and the same row in
another batch differ by about 1e-6, which would break "ratio exactly 1").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .models.base import DiffusionPolicy
from .types import Canvas, Experience


BUCKET = 64
"""Rows whose lengths round up to the same multiple of this may share a unit; padding is at most that many tokens."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Indices into the window's rows, and the noise draw. A dummy unit has weight 0: it only keeps ranks in step."""

    rows: tuple[int, ...]
    draw: int
    dummy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One unit at one inner update, padded to its longest row: everything ``score_tokens`` and the loss need.

    Shapes are ``[b, L]``, ``advantages``, ``completion_length`` and ``scale`` are ``[b]``. ``old_logps`` is None while
    the policy has not moved, ``ref_logps`` where there is no reference. ``scale`` is what a row's loss is multiplied
    with: 1 / its draws, 0 in dummy units.
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
    scale: Tensor


def _bucket(row: Experience, policy: DiffusionPolicy) -> int:
    length = len(row.ids)
    return length if policy.attends_padding else -(-length // BUCKET)


def cut_units(
    rows: list[Experience], micro_batches: list[list[int]], policy: DiffusionPolicy, betas: dict[str, float]
) -> list[list[Unit]]:
    """The units of each micro-batch. Rows that cannot move the policy are left out.

    A row is left out when no reward applied to it, or when its advantage is 0 and its task has no KL term.
    """
    cut = []
    for indices in micro_batches:
        groups: dict[tuple, list[int]] = {}
        for index in indices:
            row = rows[index]
            if not row.active or (row.advantage == 0 and betas[row.task] == 0):
                continue
            for draw in range(row.target.shape[1]):
                if bool(row.target[:, draw].any()):
                    groups.setdefault((row.task, _bucket(row, policy), draw), []).append(index)
        cut.append([Unit(tuple(members), key[2]) for key, members in sorted(groups.items())])
    return cut


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
    window: list[Experience], unit: Unit, k: int, policy: DiffusionPolicy, device: torch.device | str
) -> Batch:
    """``unit`` at inner update ``k``, on ``device``."""
    rows = [window[index] for index in unit.rows]
    length = max(len(row.ids) for row in rows)

    def stack(name: str, fill: float | bool = 0) -> Tensor:
        return _stack([getattr(row, name) for row in rows], length, fill).to(device)

    def drawn(name: str, fill: float | bool = 0) -> Tensor | None:
        if any(getattr(row, name) is None for row in rows):
            return None
        return _stack([getattr(row, name)[k, unit.draw] for row in rows], length, fill).to(device)

    canvas = Canvas(
        ids=stack("ids", policy.pad_token_id),
        fill_mask=stack("fill_mask", False),
        attention_mask=stack("attention_mask", False),
        task=rows[0].task,
        token_space=rows[0].token_space,
        position_ids=None if rows[0].position_ids is None else stack("position_ids"),
        extra={key: torch.cat([row.extra[key] for row in rows]).to(device) for key in rows[0].extra},
    )
    old_known = all(row.old_known is not None and bool(row.old_known[k]) for row in rows)
    draws = [0.0 if unit.dummy else 1.0 / max(int(row.target[k].any(dim=-1).sum()), 1) for row in rows]
    return Batch(
        canvas=canvas,
        hidden=drawn("hidden", False),
        target=drawn("target", False),
        weight=drawn("weight"),
        noisy_ids=drawn("input_ids", policy.pad_token_id),
        old_logps=drawn("old_logps") if old_known else None,
        ref_logps=drawn("ref_logps"),
        advantages=torch.tensor([row.advantage for row in rows], device=device),
        completion_length=torch.tensor([float(row.completion_mask.sum()) for row in rows], device=device),
        scale=torch.tensor(draws, device=device),
    )
