"""Results as a table, as a picture and as the README's lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
COLUMNS = ("case", "kind", "plain", "ours", "ratio", "goal", "floor", "ok")


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
    """Where the plain implementation spends its time, beside what is expected (in brackets), and whether it takes as long."""
    lines = []
    for result in results:
        parts = result["extra"].get("plain_parts")
        if not parts:
            continue
        usual = parts.get("expected_shares", {})
        shares = ", ".join(_share(part, share, usual.get(part)) for part, share in parts["shares"].items())
        line = f"plain side of {result['name']}: {parts['ms']:.0f} ms; {shares}"
        if "expected_ms" in parts:
            within = "within" if parts["as_expected"] else "NOT within"
            line += f"; {within} 30 % of {parts['expected_ms']:.0f} ms"
        lines.append(line)
    return lines


def _share(part: str, share: float, usual: float | None) -> str:
    beside = "" if usual is None else f" ({100 * usual:.0f})"
    return f"{part} {100 * share:.0f}{beside} %"


def show(report: dict[str, Any], console: Console | None = None) -> None:
    """Print a report: the table of cases, or of workloads on a device."""
    console = console or wide_console()
    console.print(described(report["environment"]))
    if "device" in report:
        console.print(_device_table(report["device"]))
        return
    table = Table(*COLUMNS)
    for result in report["results"]:
        table.add_row(*cells(result))
    console.print(table)
    notes = [f"{result['name']}: {result['note']}" for result in report["results"] if result["note"]]
    for line in part_lines(report["results"]) + notes:
        console.print(line, highlight=False)


def wide_console() -> Console:
    """The terminal, or lines long enough for the table where the output is a file."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def _device_table(lines: list[dict[str, Any]]) -> Table:
    table = Table("workload", "seconds", "rate", "peak GB", "TFLOP/s", "of the limit", "hottest part")
    for line in lines:
        hottest = line["hottest"][0]
        table.add_row(
            line["name"],
            f"{line['seconds']:.3f}",
            f"{line['rate']:.2f} {line['unit']}",
            f"{line['peak_gb']:.1f}",
            f"{line['tflops']:.1f}",
            f"{100 * line['share_of_limit']:.1f} %",
            f"{hottest['part'][:48]} {100 * hottest['share']:.0f} %",
        )
    return table


def described(environment: dict[str, Any]) -> str:
    """The environment in one line."""
    return (
        "{model} model, {parameters:,} parameters, vocabulary {vocabulary:,}, {dtype}, {device} ({cpu}), "
        "{threads} thread(s), {allocator} allocator, torch {torch}"
    ).format(**environment) + ("; quick sizes" if environment.get("quick") else "")


def markdown(report: dict[str, Any]) -> str:
    """The table in Markdown under a line that describes the environment."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *(cells(result) for result in report["results"])]
    return "\n".join([described(report["environment"]), "", *(f"| {' | '.join(row)} |" for row in rows)])


def write_readme(report: dict[str, Any], path: Path = README) -> None:
    """Replace what stands between the two comments of ``path``.

    Raises:
        ValueError: the comments are missing.
    """
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path} lacks the comments {BEGIN} and {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{markdown(report)}\n{END}{after}")


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
