"""A window's answers to be looked at: as a table on the terminal, as files, and in the trackers that a run reports to."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from ..models.processing import content_text
from ..terminal import console, middle_out
from .contact_sheet import Drawn, grouped_sheet


SHEET_ROWS, SHEET_COLUMNS = 8, 8
"""Prompts and pictures a prompt on a contact sheet of completions."""


RATIOS = {"prompt": 4, "thought": 8, "completion": 8}
"""Shares of the terminal's width that columns of text get; the others get 3."""

UNBROKEN = 12
"""Characters of a word that a column keeps in one line, on a terminal of 80."""

TEXTS = ("task", "prompt", "image", "thought", "completion", "solution")
"""Columns that have their own place on a terminal, also where they hold numbers."""

WHOLE = 2000
"""Characters of an answer that are shown; of a longer one the beginning and the end."""


def show_completions(table: dict[str, list], step: int, limit: int | None) -> None:
    """A rich table of sampled answers on standard output: texts fold and stand beside the gold, numbers under each other."""
    rows = len(table["prompt"]) if limit is None else min(limit, len(table["prompt"]))
    scores = [name for name, column in table.items() if name not in TEXTS and all(map(_is_number, column))]
    texts = [name for name in table if name not in scores and name not in ("task", "image")]
    if len(set(table.get("task", ()))) > 1:
        scores.insert(0, "task")
    out = console()
    view = Table(title=f"Completions at step {step}", show_lines=True, expand=True)
    cells = {name: [_cell(value) for value in table[name][:rows]] for name in texts}
    numbers = ["\n".join(f"{name} {_cell(table[name][index])}" for name in scores) for index in range(rows)]
    told = min(out.width // 4, max(len(line) for own in ["scores", *numbers] for line in own.split("\n")))
    ratios = {name: RATIOS.get(name, 3) if any(map(_is_told, table[name][:rows])) else 1 for name in texts}
    widths = _widths({name: [name, *own] for name, own in cells.items()}, ratios, out.width - told - 4)
    for name in texts:
        view.add_column(
            name, overflow="fold", **({"ratio": ratios[name]} if widths is None else {"width": widths[name]})
        )
    view.add_column("scores", overflow="fold", max_width=told)
    for index in range(rows):
        view.add_row(*(cells[name][index] for name in texts), numbers[index])
    out.print(view)


def _widths(cells: dict[str, list[str]], ratios: dict[str, int], room: int) -> dict[str, int] | None:
    """Characters of each column: its longest word as far as ``UNBROKEN`` goes, and of what is left a share; None where they do not
    fit into ``room``, with 3 for the line and the padding of each.
    """
    longest = {name: max(len(word) for cell in own for word in cell.split() or [""]) for name, own in cells.items()}
    least = {name: min(own, UNBROKEN) for name, own in longest.items()}
    left, shares = room - sum(least.values()) - 3 * len(least), sum(ratios.values())
    if left < 0:
        return None
    found = {name: own + left * ratios[name] // shares for name, own in least.items()}
    widest = max(found, key=lambda name: ratios[name])
    return {**found, widest: found[widest] + left - sum(found.values()) + sum(least.values())}


def _is_told(value: Any) -> bool:
    return not isinstance(value, Image.Image)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def save_completions(table: dict[str, list], folder: Path, step: int) -> None:
    """``completions_STEP.parquet``, and ``images_STEP.png`` with the first pictures of the table and their advantages."""
    from datasets import Dataset

    folder.mkdir(parents=True, exist_ok=True)
    columns = {name: [_stored(value) for value in values] for name, values in table.items()}
    Dataset.from_dict(columns).to_parquet(folder / f"completions_{step:05d}.parquet")
    sheet = picture_sheet(table, step)
    if sheet is not None:
        sheet.save(folder / f"images_{step:05d}.png")


def picture_sheet(table: dict[str, list], step: int) -> Image.Image | None:
    """The first pictures of the table under their prompts, with thoughts and the pictures that were shown where there are some; None where none was drawn."""
    nothing = [None] * len(table["prompt"])
    columns = [table.get(name, nothing) for name in ("prompt", "completion", "thought", "image")]
    drawn = [
        Drawn(words(prompt), completion, thought or "", shown)
        for prompt, completion, thought, shown in zip(*columns, strict=True)
        if isinstance(completion, Image.Image)
    ]
    return grouped_sheet(drawn, rows=SHEET_ROWS, columns=SHEET_COLUMNS, title=f"step {step}") if drawn else None


# ---- trackers ----


def track_completions(
    table: dict[str, list], step: int, report_to: list[str], callbacks: list[TrainerCallback]
) -> None:
    """The table as ``completions`` in wandb, trackio and tensorboard, where ``report_to`` names them; pictures as images.

    Beside it stands a histogram of each column of numbers: rewards and advantages (``distributions/NAME``). As in TRL, wandb and trackio get a table with the step in its first column. tensorboard has none: it gets the table as text, and
    drawn pictures on a sheet (``completions/pictures``).

    Args:
        callbacks: those of the trainer, of which tensorboard's has the files.
    """
    spread = distributions(table)
    if "wandb" in report_to:
        import wandb

        if wandb.run is not None:
            columns = tracked_columns(table, step, wandb.Image)
            rows = [list(row) for row in zip(*columns.values(), strict=True)]
            histograms = {name: wandb.Histogram(values) for name, values in spread.items()}
            sent = {"completions": wandb.Table(columns=list(columns), data=rows), **histograms}
            wandb.log({**sent, "train/global_step": step})
    if "trackio" in report_to:
        import pandas
        import trackio

        frame = pandas.DataFrame(tracked_columns(table, step, trackio.Image), dtype=object)
        histograms = {name: trackio.Histogram(values) for name, values in spread.items()}
        trackio.log({"completions": trackio.Table(dataframe=frame), **histograms})
    writers = [
        own.tb_writer for own in callbacks if isinstance(own, TensorBoardCallback) and own.tb_writer is not None
    ]
    sheet = picture_sheet(table, step) if writers else None
    for writer in writers:
        writer.add_text("completions", markdown(table), step)
        for name, values in spread.items():
            writer.add_histogram(name, np.asarray(values), step)
        if sheet is not None:
            writer.add_image("completions/pictures", np.asarray(sheet), step, dataformats="HWC")
        writer.flush()


def distributions(table: dict[str, list]) -> dict[str, list[float]]:
    """The values of each column of numbers, those that are none left out, under the name of its histogram."""
    found = {}
    for name, column in table.items():
        values = [value for value in column if value is not None and value == value]
        if name not in TEXTS and values and all(map(_is_number, column)):
            found[f"distributions/{name}"] = values
    return found


def tracked_columns(table: dict[str, list], step: int, image: Callable[[Any], Any]) -> dict[str, list]:
    """The table's columns with the step, each of one type, as wandb wants them: numbers, texts, or pictures made by ``image``.

    Drawn pictures are a column ``picture`` beside the texts.
    """
    found: dict[str, list] = {"step": [step] * len(table["prompt"])}
    for name, column in table.items():
        numbers = all(map(_is_number, column))
        found[name] = column if numbers else [None if value is None else str(_stored(value)) for value in column]
        if any(isinstance(value, Image.Image) for value in column):
            pictures = [image(value) if isinstance(value, Image.Image) else None for value in column]
            found["picture" if name == "completion" else name] = pictures
    return found


def markdown(table: dict[str, list]) -> str:
    """The table in markdown, in which nothing of a model or a dataset is markup."""

    def cell(value: Any) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(_stored(value))
        return html.escape(text).replace("|", "&#124;").replace("\n", "<br>")

    names = [cell(name) for name in table]
    lines = [names, ["---"] * len(names), *(map(cell, row) for row in zip(*table.values(), strict=True))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- cells ----


def words(value: Any) -> str:
    """A cell as text; of a conversation its messages under their roles."""
    if isinstance(value, list) and value and all(isinstance(own, dict) and "role" in own for own in value):
        return "\n".join(f"{own['role']}: {content_text(own.get('content') or '')}" for own in value)
    return str(value)


def _stored(value: Any) -> str | int | float | None:
    if isinstance(value, Image.Image):
        return _cell(value)
    return value if isinstance(value, str | int | float | None) else words(value)


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "none"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Image.Image):
        return f"picture of {value.width} x {value.height} pixels"
    return middle_out(words(value), WHOLE)
