"""Results as text, in the README beside this file, and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .expected import off


COLUMNS = ("case", "kind", "plain", "ours", "ratio", "goal", "floor", "ok")
PART_COLUMNS = ("plain side", "ms a step", "expected", "shares (expected)", "verdict")

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
"""Around what is replaced."""


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


def markdown(report: dict[str, Any]) -> str:
    """The environment in a line, the table and its notes, and where the plain side spends its time."""
    results = report["results"]
    sections = [described(report["environment"]), table(COLUMNS, map(cells, results))]
    if notes := [f"- {result['name']}: {result['note']}" for result in results if result["note"]]:
        sections.append("\n".join(notes))
    if parts := [result for result in results if result["extra"].get("plain_parts")]:
        sections += ["Where the plain side spends its time:", table(PART_COLUMNS, map(part_cells, parts))]
    return "\n\n".join(sections)


def described(environment: dict[str, Any]) -> str:
    """The environment in one line."""
    return (
        "{model} model, {parameters:,} parameters, vocabulary {vocabulary:,}, {dtype}, {device} ({cpu}), "
        "{threads} thread(s), {allocator} allocator, torch {torch}"
    ).format(**environment) + ("; quick sizes" if environment.get("quick") else "")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown; names of kernels hold what it would take for tags and columns."""
    lines = [[cell.replace("<", "&lt;").replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    lines.insert(1, ["---"] * len(columns))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_readme(report: dict[str, Any], path: Path = README) -> None:
    """Replace what stands between the comments.

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
    figure = Figure(figsize=(4.5 * len(lines), 3.5), layout="constrained")
    for place, result in enumerate(lines, start=1):
        axes, extra = figure.add_subplot(1, len(lines), place), result["extra"]
        ends = [0.0, max(extra["x"])]
        axes.plot(ends, [extra["intercept"] + extra["slope"] * x for x in ends], color="0.6")
        axes.plot(extra["x"], extra["seconds"], "o")
        axes.set(xlabel=extra["axis"], ylabel="seconds", title=f"R² = {extra['r2']:.4f}", ylim=(0, None))
    figure.savefig(path, dpi=150)
