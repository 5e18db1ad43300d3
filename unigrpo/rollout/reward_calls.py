"""One call of a reward: made now or in the background, and what several calls of it come to."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ..types import Sample
from .reward_arguments import taken
from .reward_values import CallLog, as_list


@dataclass(slots=True, kw_only=True)
class Call:
    """One call of a reward: the rows of its answers, its log, and what it returned, as a list, or ended with."""

    rows: list[int]
    log: CallLog
    outcome: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A call of the reward at ``place`` that goes on in the background, with the answers of these ``indices``."""

    place: int
    indices: list[int]
    log: CallLog
    future: Future

    def ended(self, samples: list[Sample]) -> Call:
        """The call when it has ended; it is bounded by itself. Rows are those of the answers among ``samples``."""
        rows = {sample.index: row for row, sample in enumerate(samples)}
        return Call(rows=[rows[index] for index in self.indices], log=self.log, outcome=self.future.result())


def joined(parts: list[tuple[list[int], list]], count: int) -> list:
    """``count`` values from those of some rows each; None for rows of no part."""
    values: list[Any] = [None] * count
    for rows, own in parts:
        for row, value in zip(rows, own, strict=True):
            values[row] = value
    return values


def called(function: Callable, arguments: dict[str, Any], expected: int, log: CallLog) -> Any:
    """The function's scores as a list, or what is to be awaited for them. Reading an iterator is part of the call."""
    with log.timed():
        result = function(**taken(function, arguments))
        return result if inspect.isawaitable(result) else as_list(result, expected)


async def awaited(awaitable: Any, expected: int, log: CallLog) -> list:
    """The scores that ``called`` gave something to await for."""
    with log.timed():
        return as_list(await awaitable, expected)
