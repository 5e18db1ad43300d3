"""Laws of one filled canvas, whichever sampler and policy made it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..algorithm.likelihood import score_tokens
from ..models import DiffusionPolicy
from ..samplers.base import CanvasWriter
from ..types import Canvas, Guidance, Rollout, keyed_generator
from .require import first, require


TOLERANCE = 1e-4
"""Nats. fp32 log-probabilities of one state, computed in two batches, differ by some 1e-6; another state's by 1e-2 and more."""


def streams(count: int, key: str = "testing") -> list[torch.Generator]:
    """One generator a row, always the same ones."""
    return [keyed_generator(key, row) for row in range(count)]


def check_rollout(rollout: Rollout, canvas: Canvas, policy: DiffusionPolicy, steps: int | None = None) -> None:
    """The record that a sampler returned for ``canvas``, token by token; ``steps`` bounds its step map where it is known.

    Raises:
        AssertionError: names the field, the place and the cure.
    """
    fill, space = canvas.fill_mask, canvas.token_space
    _check_shapes(rollout, canvas)
    changed = (rollout.canvas.ids != canvas.ids) & ~fill
    require(
        not changed.any(),
        f"{changed.sum()} ids outside fill_mask were changed, the first at {first(changed) if changed.any() else ''}: write "
        "only where canvas.fill_mask is True, whatever the prompt holds",
    )
    counted, written = rollout.completion_mask, rollout.step_map >= 0
    outside = (counted | written | (rollout.sampling_logps != 0)) & ~fill
    require(
        not outside.any(),
        f"completion_mask, step_map or sampling_logps speak of {first(outside) if outside.any() else ''}, which is no hole: "
        "outside fill_mask they are False, -1 and 0",
    )
    require(
        torch.equal(counted, written),
        f"{int((counted != written).sum())} positions are counted but have no step, or have a step but are not counted: what "
        "counts has the step that wrote it in step_map, everything else has -1",
    )
    if steps is not None:
        last = int(rollout.step_map.max())
        require(last < steps, f"step_map reaches {last} in {steps} steps: count steps from 0")
    ids = rollout.canvas.ids
    if policy.mask_token_id is not None:
        left = fill & (ids == policy.mask_token_id)
        require(
            not left.any(), f"the mask id was left at {first(left) if left.any() else ''}: every hole is to be written"
        )
    wrong = counted & ~space.contains(ids)
    require(
        not wrong.any(),
        f"id {ids[wrong][:1].tolist()} at {first(wrong) if wrong.any() else ''} is outside the canvas's token space {space}: draw "
        "with token_space=canvas.token_space",
    )
    logps = rollout.sampling_logps
    require(
        bool(logps.isfinite().all()) and bool((logps <= 0).all()) and not logps[~counted].any(),
        f"sampling_logps lie in [{float(logps.min())}, {float(logps.max())}] and must be finite log-probabilities, at most 0, and "
        "0 where nothing counts",
    )
    _check_completions(rollout, policy)


def _check_shapes(rollout: Rollout, canvas: Canvas) -> None:
    for name, dtype in (("completion_mask", torch.bool), ("step_map", torch.int64), ("sampling_logps", torch.float32)):
        own = getattr(rollout, name)
        require(
            own.shape == canvas.ids.shape and own.dtype == dtype,
            f"Rollout.{name} is {tuple(own.shape)} {own.dtype}; it must be {tuple(canvas.ids.shape)} {dtype}",
        )
    for name in ("fill_mask", "attention_mask"):
        require(
            torch.equal(getattr(rollout.canvas, name), getattr(canvas, name)),
            f"the rollout's canvas has another {name}: a sampler changes nothing but ids",
        )


def _check_completions(rollout: Rollout, policy: DiffusionPolicy) -> None:
    decoded = policy.decode(rollout.canvas, rollout.completion_mask)
    require(
        len(rollout.completions) == len(rollout.canvas.ids),
        f"{len(rollout.completions)} completions for {len(rollout.canvas.ids)} rows",
    )
    for row, (own, other) in enumerate(zip(rollout.completions, decoded, strict=True)):
        require(
            plain(own) == plain(other),
            f"completion {row} is {plain(own)!r}, and policy.decode(canvas, completion_mask) gives {plain(other)!r}",
        )


def check_all_written(rollout: Rollout) -> None:
    """Without stop tokens every hole is written and counts."""
    left = rollout.canvas.fill_mask & ~rollout.completion_mask
    require(
        not left.any(),
        f"{int(left.sum())} holes were never written (step_map -1), the first at {first(left) if left.any() else ''}: the last "
        "step writes whatever is left",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """At what the recorded log-probabilities of a rollout are, and what to do where they are not."""

    temperature: float
    guidance: Guidance
    cure: str


@torch.no_grad()
def check_recorded_logps(
    model, policy: DiffusionPolicy, rollout: Rollout, generators: list[torch.Generator], law: Recorded
) -> None:
    """What was recorded at each step is the model's log-probability with the same positions hidden.

    A row with a tail is looked at from the step after its stop token on: before, the tail held what is not recorded.
    ``generators`` are fresh copies of the sampler's; without a mask id the holes hold their first draws.
    """
    fill, steps, ids = rollout.canvas.fill_mask, rollout.step_map, rollout.canvas.ids
    holes = None
    if policy.mask_token_id is None:
        holes = CanvasWriter(rollout.canvas, policy, 0.0, generators).ids
    tail = (fill & (steps < 0)).any(dim=1, keepdim=True)
    last = torch.where(rollout.completion_mask, torch.arange(fill.shape[1], device=fill.device), -1).argmax(dim=1)
    since = torch.where(tail, steps.gather(1, last[:, None]), -1)
    for step in range(int(steps.max()) + 1):
        target = fill & (steps == step) & (steps > since)
        if not target.any():
            continue
        hidden = fill & (steps >= step)
        noisy = None if holes is None else torch.where(hidden, holes, ids)
        own = (hidden, target, noisy, law.temperature, law.guidance or None)
        off = score_tokens(model, policy, rollout.canvas, *own).logps - rollout.sampling_logps
        off = off.masked_fill(~target, 0).abs()
        require(
            float(off.max()) < TOLERANCE,
            f"sampling_logps are off by {float(off.max()):.3g} nats at {first(off == off.max())}, written in step {step}: {law.cure} "
            f"(temperature {law.temperature:g}, guidance {law.guidance})",
        )


def plain(completion: Any) -> Any:
    """Text as it is, codes as a list."""
    return completion.tolist() if isinstance(completion, Tensor) else completion


def difference(one: Rollout, two: Rollout, tolerance: float = 0.0) -> str:
    """The first field in which two rollouts differ, with its place; empty where they are the same.

    ``tolerance`` is for log-probabilities alone.
    """
    pairs = [("ids", one.canvas.ids, two.canvas.ids)]
    names = [item.name for item in fields(Rollout) if item.name not in ("canvas", "completions")]
    for name, own, other in [*pairs, *((name, getattr(one, name), getattr(two, name)) for name in names)]:
        if own is None and other is None:
            continue
        slack = tolerance if own.is_floating_point() else 0
        apart = (own.double() - other.double()).abs() > slack
        if apart.any():
            place = tuple(apart.nonzero()[0].tolist())
            return f"{name} at {first(apart)}: {own[place].item()} and {other[place].item()}"
    return ""
