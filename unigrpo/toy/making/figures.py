"""What a shipped policy knows at its start: shares of right answers to held-out rows, greedy and at temperature 1."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ...data.pictures import to_pixels
from ...rollout.generate import LoadedPolicy
from ...runs.accuracy import integer_match
from .. import arithmetic, emoji, emoji_check, riddles, shapes, sudoku
from ..pixel_check import right_picture


PUZZLE_ROWS, SHAPES_ROWS = 512, 480
EMOJI_JUDGES = {
    "right": emoji_check.right_picture,
    "right and clear": emoji_check.clear_picture,
    "right among look-alikes": emoji_check.alike_picture,
}
TEMPERATURES = {"T = 1": 1.0, "greedy": 0.0}


def figures(name: str, loaded: LoadedPolicy, count: int | None = None) -> dict[str, float]:
    """Shares of ``count`` held-out rows by what is measured, for ``builtin:NAME``; None = 512, of pictures 480.

    Each has the whole share first, then its parts.
    """
    if name == "shapes":
        return shapes_figures(loaded, count or SHAPES_ROWS)
    if name == "emoji":
        return emoji_figures(loaded, count or SHAPES_ROWS)
    if name == "riddles":
        return riddles_figures(loaded, count or SHAPES_ROWS)
    found = {}
    puzzle = importlib.import_module(f"..{name.removesuffix('_trained')}", __package__)
    rows = puzzle.problems("test", count or PUZZLE_ROWS)
    for label, temperature in TEMPERATURES.items():
        answers = _answers(loaded, rows, temperature)
        judge = getattr(puzzle, "solved", integer_match)
        found |= _shares(label, answers, rows, judge, lambda row: _part(name, row))
        if name == "sudoku":
            found[f"{label}, of the empty cells"] = _cells(answers, rows)
    return found


def emoji_pictures(
    loaded: LoadedPolicy, captions: list[str], *, steps: int = 8, temperature: float = 1.0
) -> list[Image.Image]:
    """A picture of each caption in random order, as the quickstart draws them unless told otherwise."""
    settings = {"sampler": "emerge", "guidance_scale": 0.0, "batch_size": 120}
    return loaded.generate(captions, task="t2i", steps=steps, temperature=temperature, **settings)


def emoji_figures(loaded: LoadedPolicy, count: int) -> dict[str, float]:
    """Pictures in random order, as they are trained and then cooler and in more steps: right, right and clear, among look-alikes."""
    found, rows = {}, emoji.problems("test", count)
    for temperature, steps in ((1.0, 8), (0.5, 12)):
        drawn = emoji_pictures(loaded, [row["prompt"] for row in rows], steps=steps, temperature=temperature)
        for label, judge in EMOJI_JUDGES.items():
            found |= _shares(f"T = {temperature:g}, {steps} steps, {label}", drawn, rows, judge)
    return found


def emoji_diversity(loaded: LoadedPolicy, captions: int = 48, draws: int = 8) -> dict[str, float]:
    """Mean squared difference, pixels in [-1, 1], of two pictures of one caption, drawn at temperature 1 and as the world renders them."""
    rows, rng = emoji.problems("test", captions), np.random.default_rng(0)
    drawn = emoji_pictures(loaded, [row["prompt"] for row in rows for _ in range(draws)])
    scenes = [emoji.Scene(row["relation"], row["first"], row["second"]) for row in rows for _ in range(draws)]
    sources = {"drawn": drawn, "rendered": [emoji.render(scene, rng) for scene in scenes]}
    return {name: _spread(to_pixels(images).unflatten(0, (captions, draws))) for name, images in sources.items()}


def _spread(pixels: Tensor) -> float:
    """Of ``[captions, draws, 3, H, W]``: the mean squared difference of two draws is twice their unbiased variance."""
    return 2 * pixels.var(dim=1).mean().item()


def riddles_figures(loaded: LoadedPolicy, count: int) -> dict[str, float]:
    """Pictures under the policy's own thoughts and under the right ones, and these thoughts, at temperature 1."""
    rows, found = riddles.problems("test", count), {}
    for label, given in (("own thoughts", {}), ("right thoughts", {"thoughts": [row["thought"] for row in rows]})):
        drawn = loaded.generate(
            [row["prompt"] for row in rows], task="r2i", sampler="emerge", temperature=1.0, batch_size=120, **given
        )
        found |= _shares(f"pictures, {label}", [own.picture for own in drawn], rows, right_picture)
        found[label] = sum(own.thought.strip() == row["thought"] for own, row in zip(drawn, rows, strict=True)) / count
    return found


def shapes_figures(loaded: LoadedPolicy, count: int) -> dict[str, float]:
    """Pictures in random order, plain and guided, then answers by question and sums, each greedy and at temperature 1."""
    found, rows = {}, shapes.problems("test", count)
    for scale in (0.0, 2.0):
        drawn = loaded.generate(
            [row["prompt"] for row in rows],
            task="t2i",
            sampler="emerge",
            steps=8,
            temperature=1.0,
            guidance_scale=scale,
            batch_size=120,
        )
        found |= _shares(f"pictures, guidance {scale:g}", drawn, rows, right_picture)
    asked, sums = shapes.questions("test", count), arithmetic.problems("test", count)
    for label, temperature in TEMPERATURES.items():
        said = _answers(loaded, asked, temperature)
        found |= _shares(f"{label}, answers", said, asked, _same_text, lambda row: row["question"])
        found |= _shares(f"{label}, sums", _answers(loaded, sums, temperature), sums, integer_match)
    return found


def _answers(loaded: LoadedPolicy, rows: list[dict[str, Any]], temperature: float) -> list[Any]:
    pictures = {"images": [row["image"] for row in rows]} if "image" in rows[0] else {}
    return loaded.generate([row["prompt"] for row in rows], temperature=temperature, batch_size=128, **pictures)


def _shares(
    label: str,
    answers: list[Any],
    rows: list[dict[str, Any]],
    judge: Callable[[Any, Any], bool],
    part: Callable[[dict[str, Any]], str | None] = lambda row: None,
) -> dict[str, float]:
    """The share that ``judge(answer, solution)`` finds right, of all rows and of each ``part`` of them."""
    outcomes: dict[str, list[bool]] = {label: []}
    for answer, row in zip(answers, rows, strict=True):
        right, own = bool(judge(answer, row["solution"])), part(row)
        outcomes[label].append(right)
        if own is not None:
            outcomes.setdefault(f"{label}, {own}", []).append(right)
    return {name: sum(own) / len(own) for name, own in outcomes.items()}


def _part(name: str, row: dict[str, Any]) -> str | None:
    return f"{len(row['numbers'])} numbers" if name == "countdown" else None


def _same_text(answer: str, solution: str) -> bool:
    return answer.strip() == solution


def _cells(answers: list[str], rows: list[dict[str, Any]]) -> float:
    """The share of empty cells with the right digit; an answer that is no 16 digits has none."""
    right = total = 0
    for answer, row in zip(answers, rows, strict=True):
        empty = [place for place, digit in enumerate(row["puzzle"]) if digit == sudoku.EMPTY]
        total += len(empty)
        if len(answer.strip()) == sudoku.CELLS:
            right += sum(answer.strip()[place] == row["solution"][place] for place in empty)
    return right / total
