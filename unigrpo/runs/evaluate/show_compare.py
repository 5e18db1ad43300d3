"""A comparison of two evaluations in a terminal of 80 columns."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from ...terminal import console, middle_out, say
from .show import SHARES


SHOWN, LONGEST = 3, 160
"""Prompts that got better, and as many that got worse, which are shown of each task; and characters of a text."""


def show(found: dict[str, Any]) -> None:
    """Prints both models, a line a task, and the prompts that changed most."""
    for side in ("a", "b"):
        say(f"{side.upper()}: {found[side]['model']['path']} ({found[side]['folder']})")
    if found["differing"]:
        say(f"more than the model differs: {found['differing']}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="fold")
    for name in ("A", "B", "B - A", "95 %", "p", "better", "worse"):
        table.add_column(name, justify="right")
    for name, own in found["tasks"].items():
        table.add_row(name, *_cells(own))
    console().print(table)
    for line in dict.fromkeys(f"p: {own['test']}" for own in found["tasks"].values()):
        say(line)
    for name, own in found["tasks"].items():
        for word in ("better", "worse"):
            _show_changed(f"{name}: got {word}, {min(SHOWN, len(own[word]))} of {len(own[word])}", own[word][:SHOWN])


def _cells(own: dict[str, Any]) -> list[str]:
    scale = 100 if own["metric"] in SHARES else 1
    digits = 1 if scale == 100 else 3
    unit = " %" if scale == 100 else ""
    gain = own["difference"]
    return [
        f"{scale * own['a']:.{digits}f}{unit}",
        f"{scale * own['b']:.{digits}f}{unit}",
        f"{scale * gain['mean']:+.{digits}f}",
        f"[{scale * gain['low']:+.{digits}f}, {scale * gain['high']:+.{digits}f}]",
        f"{own['p_value']:.2g}",
        str(len(own["better"])),
        str(len(own["worse"])),
    ]


def _show_changed(title: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    view = Table(title=title, title_justify="left", show_lines=True, expand=True)
    for name, ratio in (("prompt", 4), ("gold", 2), ("A", 4), ("B", 4)):
        view.add_column(name, ratio=ratio, overflow="fold")
    for own in rows:
        gold = "" if own["gold"] is None else str(own["gold"])
        view.add_row(*(middle_out(text, LONGEST) for text in (str(own["prompt"]), gold, own["a"], own["b"])))
    console().print(view)
