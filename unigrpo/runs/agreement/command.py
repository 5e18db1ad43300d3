"""The command: a recipe's held-out rows, decoded in every way, as a table, numbers and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from ...config.arguments import UniGRPOConfig
from ...data.rows import task_of
from ...rollout.pipeline import Pipeline
from ...terminal import console, say
from ...training.checkpoints.files import write_json
from ...types import is_picture, spans_of
from ..build import build_accuracy, build_config
from ..recipe import Recipe
from ..train import held_out_pipeline, held_out_rows, versions
from .measuring import Measurement
from .report import draw_scatter, show
from .variants import ENTROPIES, THRESHOLDS, Variant, usable, variants_of


LIMIT = 128


def agreement(
    recipe: Recipe,
    *,
    model: str | None = None,
    limit: int = LIMIT,
    output_dir: str | None = None,
    temperature: float = 0.0,
    thresholds: Sequence[float] = THRESHOLDS,
    entropies: Sequence[float] = ENTROPIES,
) -> dict[str, Any]:
    """Measures each approximate way of decoding against exact decoding of the recipe's model, or of ``model``.

    The rollouts' settings decide (``steps``, ``block_length``, ``guidance_scale`` ...), but for the temperature: at 0 exact
    decoding is one answer a prompt. Above, every way of decoding starts from the same random numbers a row; they are
    drawn hole by hole, so one that makes other steps soon reads others.

    Args:
        limit: held-out rows of each task, from the first on; 0 = all.
        output_dir: for ``agreement.json`` and ``agreement.png``; default the recipe's.

    Returns:
        what ``agreement.json`` holds.

    Raises:
        ValueError: no held-out rows of text or about pictures, or settings that are out of their range.
    """
    args = build_config(recipe)
    if limit < 0 or temperature < 0:
        raise ValueError(f"limit={limit} and temperature={temperature} must not be negative")
    rows, notes = measured_rows(recipe, limit)
    variants = {
        task: variants_of(args.for_task(task), temperature=temperature, thresholds=thresholds, entropies=entropies)
        for task in rows
    }
    pipe = held_out_pipeline(recipe, [row for own in rows.values() for row in own], model)
    runnable, missing = {}, []
    for task, own in variants.items():
        runnable[task], missing = usable(own, pipe.policy)
    if pipe.policy.mask_token_id is None:
        missing.append("log-probabilities are not compared: without a mask id, what the holes held is not kept")
    result = {
        "recipe": recipe.source,
        "model": model or recipe.model.path,
        "temperature": temperature,
        "notes": [*notes, *missing],
        "machine": machine(pipe),
        "settings": {task: settings_of(args, task) for task in rows},
        "tasks": measure_tasks(pipe, recipe, rows, runnable),
    }
    out = Path(output_dir or args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "agreement.json", result)
    show(result)
    drawn = draw_scatter(result, out / "agreement.png")
    say(f"wrote agreement.json{' and agreement.png' if drawn else ''} to {out}")
    return result


def measured_rows(recipe: Recipe, limit: int) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Held-out rows by task, and a note on those that are drawn.

    Raises:
        ValueError: there are none, or only pictures to draw.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in held_out_rows(recipe):
        rows.setdefault(task_of(row), []).append(row)
    drawn = {task: rows.pop(task) for task in list(rows) if is_picture(spans_of(task)[-1])}
    if not rows:
        raise ValueError(
            f"{recipe.source} holds out pictures to draw only (task {' and '.join(map(repr, drawn))}): caches, thresholds and early "
            "exits are for text and image understanding"
        )
    notes = [
        f"{len(own)} rows of task {task!r} are left out: they are drawn exactly, always" for task, own in drawn.items()
    ]
    return {task: own[: limit or None] for task, own in rows.items()}, notes


def measure_tasks(
    pipe: Pipeline, recipe: Recipe, rows: dict[str, list[dict[str, Any]]], variants: dict[str, list[Variant]]
) -> dict[str, Any]:
    """The measurements of all tasks, with progress on stderr."""
    with Progress(console=console(error=True), transient=True) as bar:
        measured = {}
        judges = build_accuracy(recipe)
        for task, own in rows.items():
            line = bar.add_task(f"decoding {task}")
            measurement = Measurement(
                pipe, task, own, variants[task], judges.get(task), lambda line=line: bar.advance(line)
            )
            bar.update(line, total=measurement.calls)
            measured[task] = measurement.run()
    return measured


def settings_of(args: UniGRPOConfig, task: str) -> dict[str, Any]:
    """The settings that decoding reads."""
    settings = args.for_task(task)
    names = ("max_completion_length", "steps", "block_length", "remasking", "guidance_scale")
    return {name: getattr(settings, name) for name in names}


def machine(pipe: Pipeline) -> dict[str, Any]:
    """What speeds depend on."""
    device = torch.device(pipe.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "dtype": str(next(pipe.model.parameters()).dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in pipe.model.parameters()),
        "versions": versions(),
    }
