"""Curves as SVG that takes its colours from the page it stands in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...terminal import visible
from .markup import escaped


WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 24
MOST = 600
"""Points of a line that are drawn; of a longer one means of neighbours."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A small chart.

    Attributes:
        title: what is drawn.
        lines: points by the name of the line, in steps and values; those of one line are in order.
        note: what is to be known to read it.
    """

    title: str
    lines: dict[str, Points]
    note: str = ""


def figure(curve: Curve) -> str:
    """The chart as HTML, with first and last value in words; empty where there is nothing to draw."""
    lines = {name: list(own) for name, own in curve.lines.items() if own}
    if not lines:
        return ""
    several = len(lines) > 1
    legend = "".join(
        f'<li><span class="key k{number % 6}"></span>{escaped(name) if several else ""} {_change(own)}</li>'
        for number, (name, own) in enumerate(lines.items())
    )
    note = f'<p class="note">{escaped(curve.note)}</p>' if curve.note else ""
    return f"<figure class=chart><figcaption>{escaped(curve.title)}</figcaption>{svg(curve.title, lines)}<ul class=legend>{legend}</ul>{note}</figure>"


def _change(points: Points) -> str:
    first, last = points[0][1], points[-1][1]
    return f"{first:.3g}" if len(points) == 1 else f"{first:.3g} → {last:.3g}"


def svg(title: str, lines: dict[str, list[tuple[float, float]]]) -> str:
    """The drawing: of each line its points, faint, and their running mean; one point alone is a dot."""
    every = [point for own in lines.values() for point in own]
    across = ticks(min(x for x, _ in every), max(x for x, _ in every), 4, whole=True)
    upward = ticks(min(y for _, y in every), max(y for _, y in every), 4)
    low_x, high_x = min(x for x, _ in every), max(max(x for x, _ in every), min(x for x, _ in every) + 1)
    low_y, high_y = min(upward[0], *(y for _, y in every)), max(upward[-1], *(y for _, y in every))

    def place(x: float, y: float) -> tuple[float, float]:
        right = LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        return right, HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(visible(title))} over optimizer steps">'
    ]
    for tick in upward:
        y = place(low_x, tick)[1]
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in across:
        if low_x <= tick <= high_x:
            x = place(tick, low_y)[0]
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{_number(tick)}</text>')
    for number, own in enumerate(lines.values()):
        colour = f"k{number % 6}"
        drawn = [place(*point) for point in thinned(own)]
        if len(drawn) < 3:
            parts += [f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in drawn]
        smooth = [place(*point) for point in thinned(running_mean(own))]
        if len(drawn) >= 30:
            parts.append(f'<polyline class="{colour} raw" points="{_path(drawn)}"/>')
        else:
            smooth = drawn
        parts.append(f'<polyline class="{colour}" points="{_path(smooth)}"/>')
    return "".join([*parts, "</svg>"])


def _path(points: Points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def running_mean(points: Points) -> list[tuple[float, float]]:
    """Each value averaged with those before it, a fifteenth of the line."""
    window = max(len(points) // 15, 1)
    found = []
    for place, (step, _) in enumerate(points):
        part = [value for _, value in points[max(0, place - window) : place + 1]]
        found.append((step, sum(part) / len(part)))
    return found


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most about ``MOST`` points: means of neighbours, so that a long run makes no heavy page."""
    size = math.ceil(len(points) / MOST)
    if size <= 1:
        return list(points)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Round numbers from below ``low`` to above ``high``, at least two, a 1, 2 or 5 with zeros apart."""
    spread = high - low
    if spread <= abs(high) * 1e-9 + 1e-300:
        spread = abs(high) or 1.0
        low, high = low - spread / 2, high + spread / 2
    rough = spread / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, max(last, first + 1) + 1)]


def _number(value: float) -> str:
    small = 0 < abs(value) < 1e-3
    return (
        "0"
        if value == 0
        else f"{value:{'.2e' if small else '.3g'}}".replace(".00e", "e")
        .replace("0e", "e")
        .replace("e-0", "e-")
        .replace("e+0", "e")
    )
