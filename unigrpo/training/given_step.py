"""The given rows of one optimizer step: drawn, written, noised, cut into units, and what their losses are divided by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..algorithm.denoising import Hidden, MaskedDenoising, denoising_sum
from ..algorithm.noising import random_corruption
from ..data.given import given_of
from ..data.rows import read_row, task_of
from ..errors import TooLongError
from ..models.base import DiffusionPolicy
from ..types import SPANS, Experience, is_picture, keyed_generator, spans_of
from .batches import Unit, bucket, collate, cut_units, pad_units, score_batch, unit_draws
from .given import Writer, Written, experience_of
from .mixture import Mixture


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenStep:
    """This rank's rows of one optimizer step.

    Attributes:
        experiences: the rows, noised.
        shares: what each adds to its task's divisor.
        divisors: the divisor of each task, of the rows of all ranks and micro-batches.
        micro_batches: their units, of every rank the same number.
    """

    experiences: list[Experience]
    shares: list[float]
    divisors: dict[str, float]
    micro_batches: list[list[Unit]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """This process among the others, and how it hears of them."""

    rank: int
    ranks: int
    gather: Callable[[Tensor], Tensor]
    device: torch.device | str


def given_step(
    writer: Writer,
    sources: Mapping[str, Any],
    mixture: Mixture,
    step: int,
    place: Place,
    *,
    seed: int,
    rows_per_batch: int,
    micro_steps: int,
) -> GivenStep:
    """The rows of optimizer step ``step``, from 0.

    A row is noised by its number in the step, so that it is the same on whichever process, and in whichever micro-batch. Rows
    of one task and of like length stand together; the step's gradient is the same sum either way.
    """
    rows, own = mixture.step(step), rows_per_batch * micro_steps
    experiences, shares = [], []
    for number in range(place.rank * own, (place.rank + 1) * own):
        source, index = rows[number]
        where = f"{source}[{index}]"
        key = ("step", seed, step, number)
        own_row = read_row(sources[source], index, where)
        row, span = one_span(writer, sources[source], own_row, key)
        try:
            written = writer.write(row, where, span=span)
        except TooLongError:
            # Rows were checked with their own prompts; another one may be too long for this thought.
            written = writer.write(own_row, where, span=span)
        experience, hidden = noised(writer, written, key, number)
        experiences.append(experience)
        shares.append(hidden.share)
    order = sorted(range(own), key=lambda i: (experiences[i].task, bucket(experiences[i], writer.policy), i))
    dealt = [order[i * rows_per_batch : (i + 1) * rows_per_batch] for i in range(micro_steps)]
    return GivenStep(
        experiences=experiences,
        shares=shares,
        divisors=divisors(writer.objectives, experiences, shares, place),
        micro_batches=units_of(experiences, dealt, writer.policy, place),
    )


def one_span(
    writer: Writer, rows: Any, row: dict[str, Any], key: tuple[int | str, ...]
) -> tuple[dict[str, Any], str | None]:
    """Which span of a row of ``r2i`` is trained where each has a law of its own: either, with equal chance; else None.

    The row comes with the prompt of another one of its ``rows`` now and then (``swap_prompt``).
    """
    if task_of(row) != "r2i" or not writer.by_span:
        return row, None
    generator = keyed_generator("span", *key)
    span = SPANS["r2i"][int(torch.randint(2, (), generator=generator))]
    if float(torch.rand((), generator=generator)) < writer.objectives[span].swap_prompt:
        other = int(torch.randint(len(rows), (), generator=generator))
        given, prompt = (given_of(own, "a row").row for own in (row, read_row(rows, other, f"row {other}")))
        if prompt.get("prompt"):
            row = {key: value for key, value in given.items() if key not in ("messages", "conversations")}
            row["prompt"] = prompt["prompt"]
    return row, span


def noised(writer: Writer, written: Written, key: tuple[int | str, ...], number: int) -> tuple[Experience, Hidden]:
    """A row under its task's law, drawn from ``key``."""
    task, policy = written.canvas.task, writer.policy
    objective = writer.objectives[task]
    if is_picture(spans_of(task)[-1]) and objective.caption_dropout:
        draw = torch.rand((), dtype=torch.float64, generator=keyed_generator("caption", *key))
        written = writer.without_caption(written) if float(draw) < objective.caption_dropout else written
    hidden = objective.hide(written.trained, written.marks, written.codes, generator=keyed_generator("denoise", *key))
    return hidden_row(policy, written, hidden, key, number), hidden


def hidden_row(
    policy: DiffusionPolicy, written: Written, hidden: Hidden, key: tuple[int | str, ...], number: int
) -> Experience:
    """The row with ``hidden`` of it hidden; random tokens of its task stand there where a policy has no mask id."""
    noisy = None
    if policy.mask_token_id is None:
        space, generator = policy.token_space(written.canvas.task), keyed_generator("corruption", *key)
        noisy = random_corruption(hidden.hidden, written.canvas.ids[0], space, generator=generator)
    return experience_of(written, hidden, number, noisy, policy.attends_padding)


def units_of(
    experiences: list[Experience], dealt: list[list[int]], policy: DiffusionPolicy, place: Place
) -> list[list[Unit]]:
    """The units of each micro-batch; at least one, and on every rank as many."""
    units = cut_units(experiences, [unit_draws(own) for own in experiences], dealt, policy)
    counts = torch.tensor([[len(unit) for unit in units]], device=place.device)
    most = place.gather(counts).amax(dim=0).clamp(min=1).tolist()
    return pad_units(units, most, experiences)


def divisors(
    objectives: Mapping[str, MaskedDenoising], experiences: list[Experience], shares: list[float], place: Place
) -> dict[str, float]:
    """What each task's sum is divided by: the shares of its rows on all ranks, at least 1."""
    tasks = list(objectives)
    own = torch.zeros(1, len(tasks), dtype=torch.float64)
    for experience, share in zip(experiences, shares, strict=True):
        own[0, tasks.index(experience.task)] += share
    # A device may have no float64; counts are whole numbers, exact in float32 up to 16 million.
    total = place.gather(own.float().to(place.device)).double().sum(dim=0).tolist()
    return {task: max(value, 1.0) for task, value in zip(tasks, total, strict=True)}


def unit_sums(
    model: Any, policy: DiffusionPolicy, experiences: list[Experience], unit: Unit, device: Any
) -> tuple[Tensor, Tensor]:
    """The weighted sum of -log p of all rows, ``[]`` and differentiable, and of each without gradient, ``[b]``.

    Both are 0 in a dummy unit.
    """
    batch = collate(experiences, unit, 0, policy, device)
    scores = score_batch(model, policy, batch, coefficients=-batch.weight * batch.scale[:, None])
    assert scores.total is not None, "asked for with the coefficients"
    return scores.total, denoising_sum(scores.logps, batch.weight) * batch.scale
