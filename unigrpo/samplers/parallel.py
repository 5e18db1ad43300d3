"""A text and a picture of one canvas written in parallel: one forward a step serves both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..models.base import DiffusionPolicy
from ..models.forward import Ask
from ..types import Canvas, Rollout
from .answers import Answers
from .base import CanvasWriter, Stepwise
from .joint import begin_on_one_canvas


def picture_times(text_steps: int, picture_steps: int) -> list[int]:
    """The text steps, counted from 0, at which the picture takes its ``picture_steps``: evenly from a quarter on, the last with the text's.

    Raises:
        ValueError: more of them than there are steps from a quarter on.
    """
    first = text_steps // 4
    if text_steps - first < picture_steps:
        raise ValueError(
            f"parallel decoding takes the {picture_steps} steps of a picture within the last three quarters of the "
            f"{text_steps} steps of its text: give the picture at most {text_steps - first} steps, or the text more"
        )
    times = torch.linspace(first, text_steps - 1, picture_steps, dtype=torch.float64).round().long().tolist()
    return [*times[:-1], text_steps - 1]


@torch.no_grad()
def write_in_parallel(
    model: Any,
    policy: DiffusionPolicy,
    canvases: Sequence[Canvas],
    samplers: Sequence[Stepwise],
    *,
    on_step: Callable[[int, int], None] | None = None,
    generators: Sequence[list[torch.Generator]],
) -> list[Rollout]:
    """Fill a text and a picture that read each other while they are written: MMaDA-Parallel's decoding (arXiv 2511.09611).

    Every step of the text is one forward. At ``picture_times`` the same forward serves a step of the picture too, whose schedule and noise
    go by the text's clock. Each span has the temperature, order, noise and guidance of its own sampler. Guidance compares with the row
    that its policy gives for the span (``guidance_canvas``); it reads the other span as far as that row keeps it.

    Args:
        canvases: of the text and of the picture, B rows each: the same ids, in which the holes of both are hidden.
        samplers: of the text and of the picture.
        on_step: called as ``on_step(done, total)``, of the steps of the text.
        generators: one list a span, of B each.

    Returns:
        the rollouts of text and picture. Their canvases hold the ids of both; steps of ``step_map`` are the text's.

    Raises:
        ValueError: canvases that are not one, samplers without steps that can be told apart, more steps of the picture than fit, or as a
            sampler raises.
    """
    text, picture = on_one_clock(samplers)
    times = picture_times(text.steps, samplers[1].steps)  # type: ignore[attr-defined]  # on_one_clock has seen them
    writers = begin_on_one_canvas(policy, canvases, (text, picture), generators)
    answers = Answers(), Answers()
    turns = (
        text.advance(answers[0], writers[0], generators[0]),
        picture.advance(answers[1], writers[1], generators[1], at=times),
    )
    for step in range(text.steps):
        acting = 2 if step in times else 1
        ask_together(model, policy, writers[:acting], answers[:acting])
        for turn in turns[:acting]:
            next(turn, None)
        if on_step is not None:
            on_step(step + 1, text.steps)
    return [own.rollout() for own in writers]


def on_one_clock(samplers: Sequence[Any]) -> tuple[Any, Any]:
    """The samplers of text and picture, the picture's with the steps of the text.

    Raises:
        ValueError: a text that is not written in a number of steps, or a picture that cannot wait for some of them.
    """
    text, picture = samplers
    if not hasattr(text, "steps"):
        raise ValueError(
            f"sampler {type(text).__name__} has no number of steps, by which a picture is written in parallel: set "
            "sampler='semi_autoregressive' for the text"
        )
    if "at" not in inspect.signature(getattr(picture, "advance", len)).parameters:
        raise ValueError(
            f"sampler {type(picture).__name__} takes every one of its steps, and a picture that is written in parallel takes some of "
            "its text's: set sampler='maskgit' or 'emerge' for the picture"
        )
    return text, replace(picture, steps=text.steps)


def ask_together(
    model: Any, policy: DiffusionPolicy, writers: Sequence[CanvasWriter], answers: Sequence[Answers]
) -> None:
    """One forward for the holes of all ``writers``, whose ``answers`` then hold the logits; none where nobody has a hole."""
    active = torch.stack([own.hidden for own in writers]).any(dim=0).any(dim=1)
    if not bool(active.any()):
        return
    rows = active.nonzero().squeeze(1)
    canvases = [replace(own.canvas, ids=own.ids).take(rows) for own in writers]
    holes = [own.hidden[rows] for own in writers]
    parts = [policy.inputs(canvases[0], holes[0])]
    asks = []
    for own, canvas, hidden in zip(writers, canvases, holes, strict=True):
        places = [0]
        twins = policy.guidance_twins(canvas, own.guidance_scale) if own.guidance_scale else []
        guided = policy.guided_inputs(canvas, hidden, twins=twins)
        for number in range(1, 1 + len(twins)):
            inputs = {key: value[number * len(rows) : (number + 1) * len(rows)] for key, value in guided.items()}
            places.append(_place(inputs, parts, places[-1] + 1))
        asks.append((places, policy.rows(hidden), own))
    inputs = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    if policy.mask_optional and bool(inputs["attention_mask"].all()):
        del inputs["attention_mask"]
    told = [
        Ask(_at(places, select, len(parts)), own.space, own.guidance_scale or None) for places, select, own in asks
    ]
    found = model(**inputs, asks=told).answers
    for own, answer, logits in zip(writers, answers, found, strict=True):
        answer.hold(own.hidden, logits, own.space)


def _place(inputs: dict[str, Any], parts: list[dict[str, Any]], first: int) -> int:
    """Where ``inputs`` stand among ``parts`` from the ``first`` on, behind which they are put if they are new."""
    for place, other in enumerate(parts):
        if place >= first and all(torch.equal(value, other[key]) for key, value in inputs.items()):
            return place
    parts.append(inputs)
    return len(parts) - 1


def _at(places: list[int], select: Tensor, count: int) -> Tensor:
    """``select [b, L]`` in those of ``count`` stacked copies whose numbers are given, ``[count b, L]``."""
    nowhere = torch.zeros_like(select)
    return torch.cat([select if place in places else nowhere for place in range(count)])
