"""Held-out loss at fixed noise, and the evidence bound in nats a token, so that two checkpoints can be compared."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..algorithm.denoising import Hidden
from ..algorithm.noising.base import random_subset
from ..data.rows import read_row, task_of
from ..rollout.pipeline import evaluating
from ..types import SPANS, Experience, keyed_generator
from .given import Writer
from .given_step import Place, hidden_row, noised, unit_sums, units_of


def bound_draw(trained: Tensor, draw: int, draws: int, key: tuple[int | str, ...]) -> Hidden:
    """One draw of the bound: l of n tokens hidden, each costs n / l; l is uniform on 1..n, one in each of ``draws`` strata.

    ``trained`` is ``[L]`` bool, the n tokens. The mean of the sum over l and masks is the evidence bound of LLaDA (arXiv 2502.09992, Eq. 6), exactly.
    """
    generator = keyed_generator("bound", *key)
    n = int(trained.sum())
    u = (draw + float(torch.rand((), dtype=torch.float64, generator=generator))) / draws
    count = min(math.floor(u * n) + 1, n)
    hidden = random_subset(trained, count, generator=generator)
    return Hidden(hidden=hidden, target=hidden, weight=hidden * (n / count), share=1.0, ratio=count / n)


@torch.no_grad()
def held_out_loss(
    writer: Writer, model: Any, dataset: Any, name: str, place: Place, *, draws: int, batch_size: int
) -> dict[str, float]:
    """Numbers of ``dataset`` for each task, over all processes; all of them call it together.

    The noise depends on a row's number alone, not on the run, its seed or its processes. Where thoughts and pictures have laws of their
    own, the rows of ``r2i`` are measured by either, in turn.

    Returns:
        ``TASK_loss``, the objective without its coefficient; ``TASK_nats_per_token``, the bound on -log p of what is trained
        over its tokens, with ``TASK_nats_per_token_se``, its standard error over rows where there are two; ``loss``, the sum of the losses times
        coefficients.
    """
    share = -(-len(dataset) // place.ranks)
    table = torch.zeros(share, 5, dtype=torch.float64)
    tasks = list(writer.objectives)
    with evaluating(model):
        for start in range(0, share, batch_size):
            places = range(start, min(start + batch_size, share))
            # The last row stands in, uncounted, where processes have unequal numbers.
            numbers = [min(place.rank * share + own, len(dataset) - 1) for own in places]
            rows = [_row(writer, dataset, number, name, draws) for number in numbers]
            experiences = [own for row in rows for own in row[0]]
            sums = _sums(writer, model, experiences, place).view(len(rows), 2, draws).mean(dim=2)
            for own, (row, values) in enumerate(zip(rows, sums, strict=True)):
                if place.rank * share + places[own] < len(dataset):
                    table[places[own]] = torch.tensor([tasks.index(row[1]), values[0], row[2], values[1], row[3]])
    everything = place.gather(table.float().to(place.device)).cpu().double()
    return summary(writer, everything[everything[:, 4] > 0])


def _row(writer: Writer, dataset: Any, number: int, name: str, draws: int) -> tuple[list[Experience], str, float, int]:
    """A row's draws under its law and for the bound, its task, mean share and number of trained tokens."""
    where = f"{name}[{number}]"
    row = read_row(dataset, number, where)
    span = SPANS["r2i"][number % 2] if task_of(row) == "r2i" and writer.by_span else None
    written = writer.write(row, where, span=span)
    by_law = [noised(writer, written, ("held out", number, draw), number) for draw in range(draws)]
    bounds = []
    for draw in range(draws):
        key = ("held out bound", number, draw)
        bounds.append(hidden_row(writer.policy, written, bound_draw(written.trained, draw, draws, key), key, number))
    share = sum(hidden.share for _, hidden in by_law) / draws
    return [*(own for own, _ in by_law), *bounds], written.canvas.task, share, int(written.trained.sum())


def _sums(writer: Writer, model: Any, experiences: list[Experience], place: Place) -> Tensor:
    """The weighted sum of -log p of each, ``[rows]`` fp64."""
    found = torch.zeros(len(experiences), dtype=torch.float64)
    (units,) = units_of(experiences, [list(range(len(experiences)))], writer.policy, place)
    for unit in units:
        values = unit_sums(model, writer.policy, experiences, unit, place.device)[1].double().cpu()
        if not unit.dummy:
            found[list(unit.indices)] = values
    return found


def summary(writer: Writer, table: Tensor) -> dict[str, float]:
    """Numbers of rows ``[task, loss sum, share, bound, tokens]``."""
    found, total = {}, 0.0
    for place, (task, objective) in enumerate(writer.objectives.items()):
        _, sums, shares, bounds, tokens = table[table[:, 0] == place].unbind(dim=1)
        if not len(sums):
            continue
        loss, nats = float(sums.sum() / shares.sum().clamp(min=1)), float(bounds.sum() / tokens.sum())
        found |= {f"{task}_loss": loss, f"{task}_nats_per_token": nats}
        count = len(sums)
        if count > 1:
            spread = (bounds - nats * tokens).square().sum() * count / (count - 1)
            found[f"{task}_nats_per_token_se"] = math.sqrt(float(spread)) / float(tokens.sum())
        total += objective.coefficient * loss
    return {"loss": total, **found}
