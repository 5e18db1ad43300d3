"""Metrics that rewards log, of several calls as of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


COUNTS = (
    "/failed",
    "/retries",
    "/timeouts",
    "/unparsable",
    "/unparsable_gold",
    "/not_evaluated",
    "/prompt_tokens",
    "/completion_tokens",
)
"""Ends of metrics that count something: of several calls they add up. Others are means."""


def together(calls: Iterable[tuple[Mapping[str, float], int]]) -> dict[str, float]:
    """The metrics of calls with so many answers each, as if there had been one call: means are weighted by answers."""
    found: dict[str, list[tuple[float, int]]] = {}
    for logged, answers in calls:
        for name, value in logged.items():
            found.setdefault(name, []).append((value, answers))
    return {name: _of_all(name, parts) for name, parts in found.items()}


def _of_all(name: str, parts: list[tuple[float, int]]) -> float:
    if name.endswith(COUNTS) or not sum(answers for _, answers in parts):
        return sum(value for value, _ in parts)
    return sum(value * answers for value, answers in parts) / sum(answers for _, answers in parts)
