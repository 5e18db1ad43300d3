"""Results in the README beside this file, between comments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .report import COLUMNS, DEVICE_COLUMNS, cells, described, device_cells, notes, part_cells, with_parts


README = Path(__file__).with_name("README.md")
COMMENTS = {
    "results": ("<!-- results: begin -->", "<!-- results: end -->"),
    "device": ("<!-- device results: begin -->", "<!-- device results: end -->"),
}
"""Around what is replaced: by the cases' results, or by those on a device."""

PART_COLUMNS = ("plain side", "ms a step", "expected", "shares (expected)", "verdict")


def write_readme(report: dict[str, Any], path: Path = README) -> None:
    """Replace what stands between the comments that belong to ``report``.

    Raises:
        ValueError: the comments are missing.
    """
    begin, end = COMMENTS["device" if "device" in report else "results"]
    text = path.read_text()
    if begin not in text or end not in text:
        raise ValueError(f"{path} lacks the comments {begin} and {end}")
    before, after = text.split(begin)[0], text.split(end)[1]
    path.write_text(f"{before}{begin}\n{markdown(report)}\n{end}{after}")


def markdown(report: dict[str, Any]) -> str:
    """The environment in a line, then tables and notes."""
    sections = [described(report["environment"])]
    if "device" in report:
        return "\n\n".join([*sections, table(DEVICE_COLUMNS, map(device_cells, report["device"]))])
    results = report["results"]
    sections.append(table(COLUMNS, map(cells, results)))
    if own := notes(results):
        sections.append("\n".join(f"- {note}" for note in own))
    if parts := with_parts(results):
        sections += ["Where the plain side spends its time:", table(PART_COLUMNS, map(part_cells, parts))]
    return "\n\n".join(sections)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown; names of kernels hold what it would take for tags and columns."""
    lines = [[cell.replace("<", "&lt;").replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    lines.insert(1, ["---"] * len(columns))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
