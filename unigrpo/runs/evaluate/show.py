"""The numbers of an evaluation in a terminal of 80 columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ...terminal import console, say
from .folder import ANSWERS, RESULTS


SHARES = ("accuracy", "cells_right")
"""Metrics that are shown in percent."""


def show(results: dict[str, Any], folder: Path) -> None:
    """Prints a line a task, what further numbers there are, and where the answers lie."""
    table = Table(box=box.SIMPLE_HEAD)
    for name, side in (
        ("task", "left"),
        ("metric", "left"),
        ("mean", "right"),
        ("95 %", "left"),
        ("prompts", "right"),
        ("answers", "right"),
    ):
        table.add_column(name, justify=side, overflow="fold")
    for name, own in results["tasks"].items():
        prompts = own["count"] if own["metric"] else own["dataset"]["rows"]
        table.add_row(name, own["metric"] or "not judged", *_cells(own), str(prompts), str(own["answers"]))
    say(f"{results['model']['path']}, seed {results['seed']}")
    console().print(table)
    for name, own in results["tasks"].items():
        for line in further(own):
            say(f"{name}: {line}")
    say(f"wrote {folder / RESULTS} and {folder / ANSWERS}")


def _cells(own: dict[str, Any]) -> tuple[str, str]:
    if own["mean"] is None:
        return "", ""
    return value(own, own["mean"]), f"[{value(own, own['low'])}, {value(own, own['high'])}]"


def value(task: dict[str, Any], number: float) -> str:
    """A mean of a task: shares in percent, other scores as they are."""
    return f"{100 * number:.1f} %" if task["metric"] in SHARES else f"{number:.3f}"


def further(own: dict[str, Any]) -> list[str]:
    """Lines on pass@k, the majority, diversity and a benchmark's own scores, as far as there are such."""
    lines = []
    for name in ("pass@k", "majority@k"):
        if own.get(name):
            shown = [f"{name[:-1]}{k} {100 * found['mean']:.1f} %" for k, found in own[name].items()]
            lines.append(", ".join(shown))
    if own.get("diversity"):
        lines.append(f"pictures of one prompt differ by {own['diversity']['mean']:.3f}")
    if own.get("unjudged") and own["metric"]:
        lines.append(f"{own['unjudged']} answers could not be judged, and do not count")
    scores = own.get("scores") or {}
    if scores:
        lines.append(", ".join(f"{name} {number:.4g}" for name, number in scores.items()))
    return lines
