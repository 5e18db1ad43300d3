"""From dataset rows to answers: encode, sample, and bring pictures in and out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from PIL import Image

from ..config.arguments import UniGRPOConfig
from ..config.build import check_task_sampler
from ..data.image_codes import ImageCodec
from ..data.rows import image_of, shows_image, task_of
from ..models.base import DiffusionPolicy
from ..models.lockstep import lockstep
from ..samplers.kv_cache import check_cache
from ..types import SPANS, TASKS, Rollout, Sample, is_picture, keyed_generator, spans_of
from .fit_memory import in_batches
from .pipeline import Pipeline, evaluating
from .thoughts import TOGETHER, Together, thought_ids, under_nothing


def sampled(
    row: dict[str, Any],
    rollout: Rollout,
    index: int,
    images: list[Image.Image] | None = None,
    earlier: tuple[Rollout, ...] = (),
) -> Sample:
    """The answer to ``row`` that ``rollout`` (B = 1) holds, ``earlier`` the spans before it."""
    return Sample(
        row=row,
        completion=rollout.completions[0],
        completion_ids=rollout.canvas.ids[rollout.completion_mask].tolist(),
        task=task_of(row),
        images=images,
        rollout=rollout,
        earlier=earlier,
        index=index,
    )


def sample_answers(
    pipe: Pipeline,
    rows: list[dict[str, Any]],
    window: int,
    *,
    indices: list[int] | None = None,
    stream: str = "sample",
    pictures_per_thought: int = 1,
    on_answers: Callable[[list[Sample]], None] | None = None,
) -> list[Sample]:
    """Answers to ``rows`` in order, one each; ``indices`` are their global numbers (default: this rank's).

    ``on_answers`` gets those of a rollout batch as soon as it is finished, but for thoughts and pictures that are written together. An
    answer depends on its prompt and its number alone, not on those that ``rollout_batch_size`` puts beside it. So many neighbours as
    ``pictures_per_thought`` have the same thought.
    """
    if indices is None:
        start = pipe.rank * len(rows)
        indices = list(range(start, start + len(rows)))
    samples: list[Sample | None] = [None] * len(rows)
    together = lockstep(pipe.model, pipe.policy, pipe.device) if pipe.forwards_meet else nullcontext(pipe.model)
    with evaluating(pipe.model), together as model:
        for task in TASKS:
            members = [i for i, row in enumerate(rows) if task_of(row) == task]
            if not members:
                continue
            own, numbers = [rows[i] for i in members], [indices[i] for i in members]
            keys = [(stream, pipe.args.seed, window, number) for number in numbers]
            answers = answers_to(pipe, model, task, own, numbers, keys, pictures_per_thought, on_answers)
            for i, answer in zip(members, answers, strict=True):
                samples[i] = answer
    return samples


def answers_to(
    pipe: Pipeline,
    model: Any,
    task: str,
    rows: list[dict[str, Any]],
    indices: list[int],
    keys: list[tuple],
    pictures_per_thought: int,
    on_answers: Callable[[list[Sample]], None] | None,
) -> list[Sample]:
    """Answers to rows of one task, as ``sample_answers``."""
    coded, images = prompt_images(pipe.policy, pipe.args, pipe.codec, rows, task)
    thoughts: list[Rollout] | None = None

    def answers(filled: dict[int, Rollout]) -> list[Sample]:
        earlier = {place: () if thoughts is None else (thoughts[place],) for place in filled}
        return [sampled(rows[i], own, indices[i], images[i], earlier[i]) for i, own in filled.items()]

    if task in SPANS and pipe.args.r2i_decoding in TOGETHER:
        thoughts, rollouts = roll_out_together(pipe, model, coded, keys)
        return answers(dict(enumerate(rollouts)))
    if task in SPANS:
        thoughts = roll_out_thoughts(pipe, model, coded, keys, pictures_per_thought)
        coded = [{**row, "thought_ids": ids} for row, ids in zip(coded, thought_ids(thoughts), strict=True)]
    told = None if on_answers is None else lambda filled: on_answers(answers(filled))
    rollouts = roll_out(pipe, model, spans_of(task)[-1], coded, keys, on_batch=told)
    return answers(dict(enumerate(rollouts)))


def roll_out_thoughts(
    pipe: Pipeline, model: Any, rows: list[dict[str, Any]], keys: list[tuple], together: int
) -> list[Rollout]:
    """One thought (B = 1) a row of ``r2i``, in order; ``together`` neighbours share one, which is written once."""
    own = [("thought", *key[:-1], key[-1] // together) for key in keys]
    first = {key: place for place, key in reversed(list(enumerate(own)))}
    places = sorted(first.values())
    written = roll_out(pipe, model, "thought", [rows[place] for place in places], [own[place] for place in places])
    by_key = {own[place]: rollout for place, rollout in zip(places, written, strict=True)}
    return [by_key[key] for key in own]


def roll_out_together(
    pipe: Pipeline, model: Any, rows: list[dict[str, Any]], keys: list[tuple]
) -> tuple[list[Rollout], list[Rollout]]:
    """A thought and a picture (B = 1 each) a row of ``r2i``, in order, written together."""
    samplers, thoughts = [pipe.algorithms[span].sampler for span in SPANS["r2i"]], {}
    length = pipe.args.for_task("thought").max_completion_length

    def write(batch: list[int], *arguments: Any, **options: Any) -> Rollout:
        together = Together(*samplers, pipe.args.r2i_decoding)
        picture = together(*arguments, **options)
        written = together.thoughts[0].to("cpu")
        thoughts.update((index, written.take(torch.tensor([place]))) for place, index in enumerate(batch))
        return picture

    pictures = roll_out(pipe, model, "picture", under_nothing(pipe.policy, rows, length), keys, write)
    return [thoughts[place] for place in range(len(rows))], pictures


def roll_out(
    pipe: Pipeline,
    model: Any,
    task: str,
    rows: list[dict[str, Any]],
    keys: list[tuple],
    write: Callable[..., Rollout] | None = None,
    on_batch: Callable[[dict[int, Rollout]], None] | None = None,
) -> list[Rollout]:
    """One rollout (B = 1) a row on a canvas of ``task``, in order, each with the random stream of its key.

    A batch is padded to its own longest prompt. Where padding is attended like text, an answer would then depend on its
    batch, so there all keep one padding, that of the longest prompt. ``write``, which is told the batch's indices
    before all else, stands in for the task's sampler. ``on_batch`` is told what is filled, as in ``in_batches``.
    """
    arguments = canvas_arguments(pipe.args, pipe.policy, pipe.codec, task)
    canvas = pipe.policy.encode(rows, task, **arguments)

    def fill(batch: list[int], on_step: Callable[[int, int], None] | None) -> Rollout:
        """Answers to the rows at these indices, from fresh generators."""
        if pipe.policy.attends_padding or len(batch) == len(rows):
            own = canvas.take(torch.tensor(batch))
        else:
            own = pipe.policy.encode([rows[index] for index in batch], task, **arguments)
        sampler = pipe.algorithms[task].sampler if write is None else partial(write, batch)
        generators = [keyed_generator(*keys[index]) for index in batch]
        rollout = sampler(model, pipe.policy, own.to(pipe.device), on_step=on_step, generators=generators)
        if is_picture(task):
            size = image_size(pipe.args, pipe.policy, task)
            rollout = replace(rollout, completions=pipe.codec.decode(rollout.completions, size))
        # One copy of each field, not one of each answer's: noise and rewards are made on the CPU.
        return rollout.to("cpu")

    lengths = canvas.attention_mask.sum(dim=1).tolist()
    size = pipe.fitted.get(task) or pipe.args.rollout_batch_size or len(rows)
    splits = not pipe.forwards_meet
    told = {"on_step": pipe.on_step, "on_batch": on_batch}
    rollouts, fitted = in_batches(fill, lengths, size, task=task, splits=splits, **told)
    if fitted < min(size, len(rows)):
        pipe.fitted[task] = fitted
    return rollouts


def image_size(args: UniGRPOConfig, policy: DiffusionPolicy, task: str) -> int | list[int]:
    """The run's image size, else the checkpoint's."""
    return args.for_task(task).image_size or policy.image_size


def prompt_images(
    policy: DiffusionPolicy, args: UniGRPOConfig, codec: ImageCodec | None, rows: list[dict[str, Any]], task: str
) -> tuple[list[dict[str, Any]], list[list[Image.Image] | None]]:
    """Rows of one task with the codes of their picture, as ``policy.encode`` reads them, and the pictures for the rewards; rows that show
    none stay as they are.
    """
    places = [place for place, row in enumerate(rows) if shows_image(row)]
    if not places:
        return rows, [None] * len(rows)
    read: dict[Any, Image.Image] = {}
    images = []
    for row in (rows[place] for place in places):
        # The rows of a group are copies of one dataset row: its picture is decoded once and shared.
        source = _picture_source(row)
        if source not in read:
            read[source] = image_of(row, f"a row with prompt {str(row['prompt'])[:60]!r}")
        images.append(read[source])
    settings, size = args.for_task(spans_of(task)[-1]), image_size(args, policy, spans_of(task)[-1])
    transforms = [rows[place].get("image_transform") or settings.image_transform for place in places]
    coded, shown = list(rows), [None] * len(rows)
    for place, image, codes in zip(places, images, codec.encode(images, size, transforms), strict=True):
        coded[place], shown[place] = codec.shown(rows[place], codes, size), [image]
    return coded, shown


def _picture_source(row: dict[str, Any]) -> Any:
    value = row["image"] if row.get("image") is not None else row["images"][0]
    value = (value.get("bytes") or value.get("path")) if isinstance(value, dict) else value
    return value if isinstance(value, str | bytes) else id(value)


def canvas_arguments(
    args: UniGRPOConfig, policy: DiffusionPolicy, codec: ImageCodec | None, task: str
) -> dict[str, Any]:
    """The arguments of ``policy.encode`` for a canvas ``task``. Both spans of ``r2i`` have one prompt, the thought's, and one layout."""
    in_span = task in SPANS["r2i"]
    settings = args.for_task("thought" if in_span else task)
    arguments = {"max_prompt_length": settings.max_prompt_length, "prompt_truncation": settings.prompt_truncation}
    if in_span or not is_picture(task):
        arguments["max_completion_length"] = settings.max_completion_length
    if in_span or is_picture(task):
        arguments |= policy.image_lengths(*codec.grid(image_size(args, policy, "picture" if in_span else task)))
    return {**arguments, "trim_padding": args.trim_padding} if task == "t2i" else arguments


def check_prompt(
    policy: DiffusionPolicy,
    args: UniGRPOConfig,
    codec: ImageCodec | None,
    row: dict[str, Any],
    where: str,
    held_out: bool = False,
    checked: dict[str, tuple[dict[str, Any], bool]] | None = None,
) -> None:
    """Raises ``ValueError`` naming the row for a prompt that does not fit, or a task that the run cannot do.

    ``checked`` holds what is known of tasks that earlier rows have shown to be possible, and is added to.
    """
    task, checked = task_of(row), {} if checked is None else checked
    if task not in checked:
        checked[task] = _checked_task(policy, args, codec, task, where, held_out)
    arguments, imageless = checked[task]
    if shows_image(row):
        # Codes cost a forward of the tokenizer; for the length their number is enough.
        row = codec.shown(row, None, image_size(args, policy, spans_of(task)[-1]))
    try:
        canvas = policy.encode([row], spans_of(task)[0], **arguments)
        policy.rows(canvas.fill_mask)
        if imageless:
            policy.imageless_canvas(canvas)
    except ValueError as error:
        column = "['prompt']" if str(error).startswith("prompt") else ""
        raise ValueError(f"{where}{column}: {error}") from error


def _checked_task(
    policy: DiffusionPolicy, args: UniGRPOConfig, codec: ImageCodec | None, task: str, where: str, held_out: bool
) -> tuple[dict[str, Any], bool]:
    """The ``canvas_arguments`` of a row's task, and whether guidance reads its canvas without the picture; raises ``ValueError``
    naming ``where`` for a task that the run cannot do.
    """
    for span in spans_of(task):
        check_task_sampler(args, span, where, held_out, policy)
        if not held_out and not is_picture(span):
            check_cache(args.for_task(span).kv_cache, policy, f"{where}, task {span!r}: ")
    if task != "text" and codec is None:
        raise ValueError(f"{where}: task {task!r} needs image_tokenizer, and {type(policy).__name__} names none")
    try:
        arguments = canvas_arguments(args, policy, codec, spans_of(task)[0])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    last = spans_of(task)[-1]
    return arguments, is_picture(last) and bool(args.for_task(last).image_guidance_scale)
