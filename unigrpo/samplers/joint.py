"""Two spans of one canvas written together, each by its own sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..models.base import DiffusionPolicy
from ..types import Canvas, Rollout
from .base import CanvasWriter, Stepwise


@torch.no_grad()
def write_together(
    model: Any,
    policy: DiffusionPolicy,
    canvases: Sequence[Canvas],
    samplers: Sequence[Stepwise],
    *,
    on_step: Callable[[int, int], None] | None = None,
    generators: Sequence[list[torch.Generator]],
) -> list[Rollout]:
    """Fill spans that read each other while they are written.

    The samplers take their steps in turn, each so often that all end together, each with a forward of its own: MMaDA's joint law of
    thought and picture.

    Args:
        canvases: one a span, B rows each: the same ids, in which the holes of every span are hidden, and each its own ``fill_mask``.
        samplers: one a span.
        on_step: called as ``on_step(done, total)``, of the steps of all spans.
        generators: one list a span, of B each.

    Returns:
        a rollout a span. Their canvases hold the ids of all spans.

    Raises:
        ValueError: canvases that are not one, a sampler that cannot wait after a step, or as a sampler raises.
    """
    writers = begin_on_one_canvas(policy, canvases, samplers, generators)
    turns = [
        own.advance(model, writer, streams) for own, writer, streams in zip(samplers, writers, generators, strict=True)
    ]
    for done, total in _in_turn(turns):
        if on_step is not None:
            on_step(done, total)
    return [own.rollout() for own in writers]


def begin_on_one_canvas(
    policy: DiffusionPolicy, canvases: Sequence[Canvas], samplers: Sequence[Stepwise], generators: Sequence[list]
) -> list[CanvasWriter]:
    """A writer a span, all of which write the same ids; arguments and errors as in ``write_together``."""
    first, *others = canvases
    if any(not torch.equal(first.ids, own.ids) for own in others):
        raise ValueError("canvases that are written together must hold the same ids, all spans hidden")
    for own in samplers:
        if not isinstance(own, Stepwise):
            raise ValueError(
                f"sampler {type(own).__name__} writes its span in one call, and spans that are written together take turns: choose one "
                "of the library's samplers, or subclass samplers.base.Stepwise"
            )
        kept = getattr(own, "kv_cache", "none")
        if kept != "none":
            raise ValueError(f"kv_cache={kept!r} keeps what another span writes over: set kv_cache='none'")
    writers = [
        own.begin(policy, canvas, streams) for own, canvas, streams in zip(samplers, canvases, generators, strict=True)
    ]
    for own in writers[1:]:
        own.ids = writers[0].ids
    return writers


def _in_turn(turns: list[Iterator[tuple[int, int]]]) -> Iterator[tuple[int, int]]:
    """The turn of whoever has done the smallest share of its steps; the first of several."""
    shares: dict[int, float] = dict.fromkeys(range(len(turns)), 0.0)
    steps, totals = ([0] * len(turns) for _ in range(2))
    while shares:
        place = min(shares, key=lambda own: shares[own])
        step = next(turns[place], None)
        if step is None:
            del shares[place]
            continue
        steps[place], totals[place] = step
        shares[place] = steps[place] / totals[place]
        yield sum(steps), sum(totals)
