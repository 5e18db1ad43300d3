"""Answers while they are written: what stands on the canvas after each step, and the step that wrote each token."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image, ImageDraw

from ...models import DiffusionPolicy
from ...models.reference import is_peft
from ...rollout.generate import LoadedPolicy
from ...samplers.base import CanvasWriter
from ...types import is_picture


PREVIEWS = 8
"""Previews of a picture; each costs one pass of the image tokenizer."""

GREY = (128, 128, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What is written at once: a text, a thought before a picture, or a picture.

    Attributes:
        pieces: of a text, each piece with the step that wrote it, from 0; -1 for a token that is still hidden.
        picture: of a picture, what there is of it; hidden codes are grey.
        done, total: steps.
    """

    task: str
    pieces: tuple[tuple[str, int], ...] = ()
    picture: Image.Image | None = None
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One answer: its spans, and what is said under it once it is whole."""

    title: str = ""
    spans: tuple[Span, ...] = ()
    note: str = ""


Frame = tuple[Column, ...]


@dataclass(slots=True, kw_only=True)
class Watched(LoadedPolicy):
    """A policy that shows its canvas after each step."""

    watch: Callable[[CanvasWriter, int, int], None]

    def _fill(self, canvases: Any, fill: Any, key: Any, on_step: Any) -> Any:
        return LoadedPolicy._fill(self, canvases, partial(_step_by_step, fill, self.watch), key, on_step)


@torch.no_grad()
def _step_by_step(fill, watch, model, policy, canvas, *, on_step, generators):
    """A sampler's ``__call__`` that lets ``watch`` look in between."""
    writer = fill.begin(policy, canvas, generators)
    for done, total in fill.advance(model, writer, generators):
        watch(writer, done, total)
    return writer.rollout()


def answer(
    loaded: LoadedPolicy,
    prompt: str,
    *,
    task: str,
    image: Image.Image | None = None,
    settings: dict[str, Any],
    show: Callable[[tuple[Span, ...]], None],
    with_adapter: bool = True,
) -> Any:
    """What ``LoadedPolicy.generate`` answers, ``show(spans)`` called after each step with the spans so far.

    Args:
        loaded: its image tokenizer is loaded before, where pictures are drawn or read.
        settings: arguments of ``generate``; None = the policy's.
        with_adapter: False: the base alone answers.
    """
    spans: dict[str, Span] = {}

    def watch(writer: CanvasWriter, done: int, total: int) -> None:
        kind = writer.canvas.task
        now = Span(task=kind, done=done, total=total)
        if not is_picture(kind):
            now = replace(now, pieces=pieces(writer, loaded.policy))
        elif done in (1, total) or done % max(1, total // PREVIEWS) == 0:
            now = replace(now, picture=preview(writer, loaded))
        else:
            now = replace(now, picture=spans[kind].picture)
        spans[kind] = now
        show(tuple(spans.values()))

    own = Watched(
        model=loaded.model,
        policy=loaded.policy,
        image_tokenizer=loaded.image_tokenizer,
        codec=loaded.codec,
        watch=watch,
    )
    model: Any = loaded.model
    alone = model.disable_adapter() if is_peft(model) and not with_adapter else nullcontext()
    with alone:
        (found,) = own.generate(prompt, task=task, images=image, batch_size=1, **settings)
    return found


def pieces(writer: CanvasWriter, policy: DiffusionPolicy) -> tuple[tuple[str, int], ...]:
    """The text of the first row with the step of each token; what stands behind a stop token is left out, and special tokens.

    Tokens that are no whole letter alone are joined, with the last one's step.
    """
    tokenizer = getattr(policy.processor, "tokenizer", policy.processor)
    fill = writer.canvas.fill_mask[0]
    columns = (writer.ids[0], writer.hidden[0], writer.counts()[0], writer.step_map[0])
    ids, hidden, counted, steps = (own[fill].tolist() for own in columns)
    found, held, last = list[tuple[str, int]](), list[int](), -1

    def put(text: str) -> None:
        if text:
            found.append((text, last))
        held.clear()

    for token, is_hidden, counts, step in zip(ids, hidden, counted, steps, strict=True):
        if counts and not is_hidden:
            last = max(last, step) if held else step
            held.append(token)
            text = tokenizer.decode(held, skip_special_tokens=True)
            if not text.endswith("\ufffd"):
                put(text)
            continue
        if held:
            put(tokenizer.decode(held, skip_special_tokens=True))
        if is_hidden:
            found.append(("", -1))
    if held:
        put(tokenizer.decode(held, skip_special_tokens=True))
    return tuple(found)


def preview(writer: CanvasWriter, loaded: LoadedPolicy) -> Image.Image:
    """The picture of the first row so far; where its codes are hidden it is grey."""
    codec, size = loaded._codec(), loaded._size(None)
    fill, space = writer.canvas.fill_mask[0], writer.canvas.token_space
    ids, hidden = writer.ids[0][fill], writer.hidden[0][fill]
    canvas = replace(writer.canvas, ids=torch.where(writer.hidden, space.start, writer.ids))
    (picture,) = codec.decode([loaded.policy.decode(canvas, writer.canvas.fill_mask)[0]], size)
    columns = round(math.sqrt(len(ids) * picture.width / picture.height))
    cell = picture.width / columns
    draw = ImageDraw.Draw(picture)
    for place in hidden.nonzero().flatten().tolist():
        left, top = place % columns * cell, place // columns * cell
        draw.rectangle((left, top, left + cell - 1, top + cell - 1), fill=GREY)
    return picture
