"""What the command leaves to look at: tables, and agreement over speed-up as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ...terminal import console, say
from ..plots import figure_for


WIDTH = 6.5
"""Inches of a panel with its legend."""

MARKERS = "osD^vP"

COLUMNS = 110
"""Least width of the printed tables, also where the output is a file."""


def show(result: dict[str, Any]) -> None:
    """Prints two tables a task: ways of decoding, and likelihoods of merged steps."""
    tables = console()
    tables.width = max(tables.width, COLUMNS)
    where = result["machine"]
    for task, measured in result["tasks"].items():
        tables.print(decoding_table(task, measured, result["temperature"]))
        if measured["merged_steps"]:
            tables.print(merged_table(measured["merged_steps"]))
        if any(line["of_recipe"] for line in measured["decoding"][1:]):
            say("* as the recipe decodes")
    say(
        f"{result['model']}: {where['parameters'] / 1e6:,.1f} M parameters in {where['dtype']} on {where['device']}, "
        f"{where['threads']} CPU threads"
    )
    for note in result["notes"]:
        say(f"note: {note}")


def decoding_table(task: str, measured: dict[str, Any], temperature: float) -> Table:
    """Each way of decoding beside the exact one; forwards and positions are of one answer."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{task}, temperature {temperature:g}: agreement with exact decoding, "
        f"{measured['completions']} answers, {measured['tokens']} tokens",
    )
    table.add_column("decoding", no_wrap=True)
    shares = ("tokens\nequal %", "answers\nequal %", "right\n%")
    for name in (*shares, "forwards", "positions", "seconds", "speed-up", "|Δ log p|"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in measured["decoding"]:
        marked = line["of_recipe"] and line["decoding"] != "exact"
        table.add_row(
            line["decoding"] + (" *" if marked else ""),
            _percent(line["agreement"], 2),
            _percent(line["equal_answers"]),
            _percent(line["accuracy"]),
            f"{line['forwards']:.1f}",
            f"{line['trunk_tokens']:,.0f}",
            f"{line['seconds']:.2f}",
            f"x{line['speed_up']:.2f}",
            _nats(line["logp_gap"]),
        )
    return table


def merged_table(lines: list[dict[str, Any]]) -> Table:
    """What step-merged likelihoods save and lose."""
    table = Table(
        box=box.SIMPLE_HEAD, title="log-probabilities of the exact answers, steps merged (trajectory_shrink)"
    )
    for name in ("steps in one", "forwards", "saved %", "|Δ log p|"):
        table.add_column(name, justify="right")
    for line in lines:
        row = (f"{line['forwards']:.1f}", _percent(line["saved"]), _nats(line["logp_difference"]))
        table.add_row(str(line["shrink"]), *row)
    return table


def draw_scatter(result: dict[str, Any], picture: Path) -> bool:
    """Agreement over speed-up, a panel a task, a mark each; a star for the recipe's own way.

    Without matplotlib, a line that says how to get it. Returns whether the picture was made.
    """
    tasks = result["tasks"]
    figure = figure_for(picture, figsize=(WIDTH * len(tasks), 4))
    if figure is None:
        return False
    axes = figure.subplots(1, len(tasks), squeeze=False)
    for axis, (task, measured) in zip(axes[0], tasks.items(), strict=True):
        _panel(axis, measured["decoding"])
        axis.set_title(f"{task}: {result['model']}", fontsize=9)
    axes[0][0].set_ylabel("tokens equal to exact decoding, %")
    figure.savefig(picture, dpi=120)
    return True


def _panel(axis: Any, lines: list[dict[str, Any]]) -> None:
    """A legend rather than names at the points: shortcuts that change nothing lie on top of each other."""
    for number, line in enumerate(lines):
        marker = "*" if line["of_recipe"] else MARKERS[number % len(MARKERS)]
        point = (line["speed_up"], 100 * line["agreement"])
        axis.scatter(*point, color=f"C{number}", marker=marker, s=60, alpha=0.8, zorder=3, label=line["decoding"])
    axis.margins(0.1)
    axis.set_xlabel("speed-up over exact decoding")
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}"


def _nats(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0e}" if 0 < value < 1e-4 else f"{value:.4f}"
