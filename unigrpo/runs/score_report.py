"""What ``unigrpo rewards`` prints: the report of a file's scores, and the list of rewards."""

from __future__ import annotations

import ast
import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..rewards import REWARDS
from ..types import Sample


SHOWN_ROWS = 5
"""Rows on which the rewards disagree most."""


@dataclass(slots=True, kw_only=True)
class Column:
    """What one reward said: a score a row, None where it does not apply, and the seconds of all its calls."""

    name: str
    weight: float
    scores: list[float | None] = field(default_factory=list)
    seconds: float = 0.0


def weighted(columns: list[Column], place: int) -> float | None:
    """The weighted sum of the scores that a row has."""
    own = [column.weight * column.scores[place] for column in columns if column.scores[place] is not None]
    return sum(own) if own else None


def report(data: str, lines: list[int], samples: list[Sample], columns: list[Column]) -> Iterator[str]:
    """Lines about the scores of ``samples``, which stand in the ``lines`` of the file ``data``."""
    groups: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        groups.setdefault(json.dumps(sample.row["prompt"], sort_keys=True), []).append(place)
    shared = [places for places in groups.values() if len(places) > 1]
    yield f"{data}: {len(samples)} rows, {len(groups)} prompts, {len(shared)} of them with several rows\n"
    total = [weighted(columns, place) for place in range(len(samples))]
    table = [["reward", "weight", "mean", "spread", "min", "max", "none", "ties", "ms a row"]]
    for column in columns:
        per_row = f"{1000 * column.seconds / len(samples):.2f}"
        table.append([column.name, f"{column.weight:g}", *_summary(column.scores, shared), per_row])
    table.append(["weighted sum", "", *_summary(total, shared), ""])
    yield from _aligned(table)
    yield "\nspread: standard deviation. none: rows that a reward does not apply to. ties: prompts with several rows whose"
    yield "scores are all equal, which teach nothing. ms a row: of the calls, 64 rows each."
    yield from _disagreements(lines, samples, columns)


def _summary(scores: list[float | None], shared: list[list[int]]) -> list[str]:
    own = [score for score in scores if score is not None]
    none = f"{1 - len(own) / len(scores):.1%}"
    groups = [[scores[place] for place in places if scores[place] is not None] for places in shared]
    groups = [group for group in groups if len(group) > 1]
    ties = f"{sum(max(group) == min(group) for group in groups) / len(groups):.1%}" if groups else "-"
    if not own:
        return ["-", "-", "-", "-", none, ties]
    values = statistics.fmean(own), statistics.pstdev(own), min(own), max(own)
    return [*(f"{value:.4g}" for value in values), none, ties]


def _disagreements(lines: list[int], samples: list[Sample], columns: list[Column]) -> Iterator[str]:
    """The rows whose best and worst reward are furthest apart, each on its own scale from 0 to 1."""
    scaled = [own for own in map(_scaled, columns) if own]
    if len(scaled) < 2:
        return
    gaps = []
    for place in range(len(samples)):
        own = [scores[place] for scores in scaled if scores[place] is not None]
        gaps.append((max(own) - min(own) if len(own) > 1 else 0.0, -place))
    worst = [(gap, -place) for gap, place in sorted(gaps, reverse=True)[:SHOWN_ROWS] if gap > 0]
    if not worst:
        return
    yield "\nrows on which the rewards disagree most, each reward scaled to the scores that it gave:"
    table = [["line", *(column.name for column in columns), "prompt", "completion"]]
    for _, place in worst:
        sample = samples[place]
        scores = ["-" if (own := column.scores[place]) is None else f"{own:.4g}" for column in columns]
        answer = sample.completion if isinstance(sample.completion, str) else "(a picture)"
        table.append([str(lines[place]), *scores, _escaped(_asked(sample.row["prompt"]), 30), _escaped(answer, 60)])
    yield from _aligned(table)


def _scaled(column: Column) -> list[float | None]:
    """Scores from 0, the worst that the reward gave, to 1, the best; empty where it gave no two."""
    own = [score for score in column.scores if score is not None]
    low, high = min(own, default=0.0), max(own, default=0.0)
    if low == high or not column.weight:
        return []
    low, high = (low, high) if column.weight > 0 else (high, low)
    return [None if score is None else (score - low) / (high - low) for score in column.scores]


def _asked(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content") if prompt else "")


def _escaped(text: str, most: int) -> str:
    """Text as one line, the end of a long one, without a character that a terminal would obey."""
    text = text if len(text) <= most else "… " + text[-most:]
    return "".join(own if own.isprintable() else own.encode("unicode_escape").decode() for own in text)


def _aligned(table: list[list[str]]) -> Iterator[str]:
    """Rows with columns of equal width; numbers to the right, prompts and completions never."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    texts = [header in ("prompt", "completion") for header in table[0]]
    for row in table:
        cells = [
            cell.rjust(width) if not text and re.fullmatch(r"[-\d.,%e+]+", cell) else cell.ljust(width)
            for cell, width, text in zip(row, widths, texts, strict=True)
        ]
        yield "  ".join(cells).rstrip()


# ---- the list ----


def listed() -> Iterator[str]:
    """One line for each reward that ships: its name, its range, what it says. No module of a reward is imported."""
    table = [["name", "range", "what it says"]]
    for name, path in sorted(REWARDS.items()):
        sentence, limits = described(path)
        table.append([name, limits, sentence])
    yield from _aligned(table)
    yield "\n`unigrpo rewards RECIPE --data completions.jsonl` scores a file; `rewards/README.md` says more of each."


def described(path: str) -> tuple[str, str]:
    """The first sentence of a reward's docstring, and its range as it stands there; ``path`` is ``module:attribute``."""
    module, _, attribute = path.partition(":")
    tree = ast.parse(Path(find_spec(module).origin).read_text(encoding="utf-8"))
    own = next(node for node in tree.body if getattr(node, "name", None) == attribute)
    text = " ".join((ast.get_docstring(own) or "").partition("\n\nArgs:")[0].replace("``", "").split())
    limits = re.search(r"[Rr]ange (\{[^}]*\}|\[[^\]]*[\])]|\([^)]*[\])]|[^.;,(]*)", text)
    sentence = re.split(r"[;.?](?:\s|$)", text, maxsplit=1)[0]
    return sentence, limits[1].strip() if limits else ""
