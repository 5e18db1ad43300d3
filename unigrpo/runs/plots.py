"""What a run leaves to look at: the reward curve and the sheets of pictures before and after."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import TrainerCallback

from ..data.rows import image_of, shows_image
from ..terminal import say
from ..training.contact_sheet import Drawn, grouped_sheet
from ..types import Sample


SHEET_PROMPTS, SHEET_SAMPLES = 8, 5
"""Held-out prompts on a sheet, and pictures of each."""


def picture_sheet(samples: list[Sample], title: str) -> Image.Image | None:
    """The first held-out prompts with a few pictures each, behind those that they show; None where nothing was drawn."""
    drawn = [sample for sample in samples if isinstance(sample.completion, Image.Image)]
    told = (Drawn(str(own.row["prompt"]), own.completion, own.thought or "", _shown(own.row)) for own in drawn)
    return grouped_sheet(told, rows=SHEET_PROMPTS, columns=SHEET_SAMPLES, title=title) if drawn else None


def _shown(row: dict[str, Any]) -> Image.Image | None:
    """The picture of a row that shows one; held-out samples have let go of theirs."""
    return image_of(row, "a held-out row") if shows_image(row) else None


def side_by_side(left: Path, right: Path, picture: Path) -> None:
    """Two pictures as one, where both exist."""
    if not (left.exists() and right.exists()):
        return
    with Image.open(left) as first, Image.open(right) as second:
        sheet = Image.new("RGB", (first.width + second.width, max(first.height, second.height)), "white")
        sheet.paste(first, (0, 0))
        sheet.paste(second, (first.width, 0))
        sheet.save(picture)


def draw_curve(metrics: Path, picture: Path, title: str) -> None:
    """Reward over optimizer steps as PNG, a line a task; without matplotlib, a line that says how to get it."""
    figure = figure_for(picture, figsize=(7, 4))
    if figure is None:
        return
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    names = sorted({name for record in records for name in record if name.startswith("reward/")})
    names = names if len(names) > 1 else ["reward"]
    axis = figure.subplots()
    for number, name in enumerate(names):
        points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
        if points:
            _line(axis, points, "reward" if name == "reward" else name.removeprefix("reward/"), f"C{number}")
    if axis.lines:
        axis.set_xlabel("optimizer step")
        axis.set_ylabel("mean reward of a rollout, and its running mean")
        axis.set_title(title)
        axis.legend(loc="lower right")
        axis.grid(alpha=0.3)
        figure.savefig(picture, dpi=120)


class RefreshedCurve(TrainerCallback):
    """``draw_curve`` again while a run goes on, at a log line once so many ``seconds`` are over; the file is whole at any moment."""

    def __init__(self, metrics: Path, picture: Path, title: str, seconds: float = 30.0) -> None:
        self.metrics, self.picture, self.title, self.seconds = metrics, picture, title, seconds
        self.drawn = time.monotonic()

    def on_log(self, args, state, control, **kwargs: Any) -> None:
        """Draws the curve anew, on the main process, where the last one is old enough."""
        if not state.is_world_process_zero or time.monotonic() - self.drawn < self.seconds:
            return
        # What is missing is said once, at the end.
        if importlib.util.find_spec("matplotlib") is None:
            return
        partial = self.picture.with_name(f".{self.picture.name}")
        draw_curve(self.metrics, partial, f"{self.title}, step {state.global_step}")
        if partial.exists():
            partial.replace(self.picture)
        self.drawn = time.monotonic()


def _line(axis: Any, points: list[tuple[float, float]], label: str, colour: str) -> None:
    steps, rewards = zip(*points, strict=True)
    window = max(len(rewards) // 15, 1)
    parts = [rewards[max(0, place - window) : place + 1] for place in range(len(rewards))]
    axis.plot(steps, rewards, color=colour, alpha=0.3)
    axis.plot(steps, [sum(part) / len(part) for part in parts], color=colour, label=label)


def figure_for(picture: Path, **options: Any) -> Any:
    """A figure of matplotlib that only a file shows; where it is not installed None, and a line that says how to get it.

    It stands apart from ``pyplot``, whose backend and figures are the user's: a notebook's plots stay as they were.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say(f"{picture.name} was not drawn: pip install 'unigrpo[plots]'")
        return None
    return Figure(layout="constrained", **options)
