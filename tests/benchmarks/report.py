"""Results as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .expected import off


COLUMNS = ("case", "kind", "plain", "ours", "ratio", "goal", "floor", "ok")
DEVICE_COLUMNS = ("workload", "seconds", "rate", "peak GB", "TFLOP/s", "of the limit", "hottest part")


def cells(result: dict[str, Any]) -> list[str]:
    """One line of the table, in the order of ``COLUMNS``."""
    if result["skipped"]:
        return [result["name"], result["kind"], "", "", "", "", "", f"skipped: {result['skipped']}"]
    return [
        result["name"],
        result["kind"],
        *(_amount(result[side], result["unit"]) for side in ("plain", "ours")),
        f"{result['ratio']:.3f}" if result["value"] is not None else f"x{result['ratio']:.2f}",
        *("" if result[key] is None else f"{result[key]:.3g}" for key in ("goal", "floor")),
        verdict(result),
    ]


def verdict(result: dict[str, Any]) -> str:
    """``yes``, ``below goal``, or ``NO`` and what failed."""
    wrong = [name for name, right in result["checks"].items() if not right]
    if wrong:
        return f"NO: {', '.join(wrong)}"
    if not result["ok"]:
        return "NO: below floor"
    below = result["goal"] is not None and result["ratio"] < result["goal"]
    return "below goal" if below else "yes"


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.0f} MB" if unit == "MB" else f"{value:.3f} s"


def part_lines(results: list[dict[str, Any]]) -> list[str]:
    """Where the plain implementation spends its time, beside what is expected (in brackets), and what is not as expected."""
    return [
        f"plain side of {name}: {ms} ms ({expected or 'nothing expected'}); {shares}" + (f"; {found}" if found else "")
        for name, ms, expected, shares, found in map(part_cells, with_parts(results))
    ]


def with_parts(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose plain side was timed part by part."""
    return [result for result in results if result["extra"].get("plain_parts")]


def part_cells(result: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """Name, ms a step, expected ms, shares in per cent with the expected ones in brackets, and a verdict."""
    parts = result["extra"]["plain_parts"]
    usual = parts.get("expected_shares", {})
    shares = ", ".join(_share(part, share, usual.get(part)) for part, share in parts["shares"].items())
    expected = f"{parts['expected_ms']:.0f}" if "expected_ms" in parts else ""
    return result["name"], f"{parts['ms']:.0f}", expected, shares, parts_verdict(parts)


def parts_verdict(parts: dict[str, Any]) -> str:
    """``within 30 %``, or what is off; empty where nothing is expected."""
    if "expected_ms" not in parts:
        return ""
    names = off(parts)
    shares = [name for name in names if name != "ms"]
    found = [f"ms off: {parts['ms']:.0f} for {parts['expected_ms']:.0f}"] if "ms" in names else []
    found += [f"shares off: {', '.join(shares)}"] if shares else []
    return "; ".join(found) or "within 30 %"


def _share(part: str, share: float, usual: float | None) -> str:
    beside = "" if usual is None else f" ({100 * usual:.0f})"
    return f"{part} {100 * share:.0f}{beside} %"


def notes(results: list[dict[str, Any]]) -> list[str]:
    """What a reader of a line has to know."""
    return [f"{result['name']}: {result['note']}" for result in results if result["note"]]


def show(report: dict[str, Any], console: Console | None = None) -> None:
    """Print a report: the table of cases, or of workloads on a device."""
    console = console or wide_console()
    console.print(described(report["environment"]))
    if "device" in report:
        table = Table(*DEVICE_COLUMNS)
        for line in report["device"]:
            table.add_row(*device_cells(line))
        console.print(table)
        return
    table = Table(*COLUMNS)
    for result in report["results"]:
        table.add_row(*cells(result))
    console.print(table)
    for line in part_lines(report["results"]) + notes(report["results"]):
        console.print(line, highlight=False)


def wide_console() -> Console:
    """The terminal, or lines long enough for the table where the output is a file."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def device_cells(line: dict[str, Any]) -> list[str]:
    """One line of the table of a device, in the order of ``DEVICE_COLUMNS``."""
    hottest = line["hottest"][0]
    return [
        line["name"],
        f"{line['seconds']:.3f}",
        f"{line['rate']:.2f} {line['unit']}",
        f"{line['peak_gb']:.1f}",
        f"{line['tflops']:.1f}",
        f"{100 * line['share_of_limit']:.1f} %",
        f"{hottest['part'][:48]} {100 * hottest['share']:.0f} %",
    ]


def described(environment: dict[str, Any]) -> str:
    """The environment in one line."""
    return (
        "{model} model, {parameters:,} parameters, vocabulary {vocabulary:,}, {dtype}, {device} ({cpu}), "
        "{threads} thread(s), {allocator} allocator, torch {torch}"
    ).format(**environment) + ("; quick sizes" if environment.get("quick") else "")


def plot_growth(report: dict[str, Any], path: Path) -> None:
    """Seconds against completions and against scored tokens, each with its fitted line."""
    from matplotlib.figure import Figure

    lines = [result for result in report["results"] if "axis" in result["extra"]]
    if not lines:
        raise ValueError("--plot needs the case 'growth': add it to --only")
    figure = Figure(figsize=(4.5 * len(lines), 3.5), layout="constrained")
    for place, result in enumerate(lines, start=1):
        axes, extra = figure.add_subplot(1, len(lines), place), result["extra"]
        ends = [0.0, max(extra["x"])]
        axes.plot(ends, [extra["intercept"] + extra["slope"] * x for x in ends], color="0.6")
        axes.plot(extra["x"], extra["seconds"], "o")
        axes.set(xlabel=extra["axis"], ylabel="seconds", title=f"R² = {extra['r2']:.4f}", ylim=(0, None))
    figure.savefig(path, dpi=150)
