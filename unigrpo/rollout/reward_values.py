"""What goes into a reward and what comes out of it: copies, scores and logs."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ReturnError
from ..rewards._metrics import together


PLAIN = (str, bytes, int, float, bool, type(None))
LARGEST_WEIGHTED = 1e36
"""Sums and spreads of weighted scores stay finite in fp32."""

LARGEST = torch.finfo(torch.float32).max
SHOWN = 80
"""Characters of a prompt, and of a wrong value, that an error shows."""


def own_copy(value: Any, seen: dict[int, Any]) -> Any:
    """``value`` for one reward alone: what the reward does to it reaches nobody else.

    Pictures, arrays and whatever else is not a plain container are copied once for all answers that share them: ``seen``
    holds the copies of one call by the id of the original. What cannot be copied is handed on as it is.
    """
    if isinstance(value, PLAIN):
        return value
    if type(value) is dict:
        return {key: own_copy(item, seen) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)([own_copy(item, seen) for item in value])
    if id(value) not in seen:
        try:
            seen[id(value)] = _duplicate(value)
        except Exception:
            # A picture that cannot be read is the reward's to judge.
            seen[id(value)] = value
    return seen[id(value)]


def _duplicate(value: Any) -> Any:
    if isinstance(value, Image.Image | np.ndarray):
        return value.copy()
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def state_copy(state: Any) -> Any:
    """The trainer's state with lists and mappings of its own; their entries are shared, since a long run has many."""
    if not hasattr(state, "__dict__"):
        return state
    own = copy.copy(state)
    for key, value in vars(state).items():
        if isinstance(value, list | dict | set):
            setattr(own, key, copy.copy(value))
    return own


def as_list(result: Any, expected: int, of: str = "") -> list:
    """The ``expected`` values of ``result``: a list, tuple, array, tensor, or an iterator over them.

    Raises:
        ReturnError: anything else, or another number; ``of`` says whose values they are.
    """
    values = result.tolist() if isinstance(result, Tensor | np.ndarray) else result
    if isinstance(values, str | bytes | dict | set) or not isinstance(values, Iterable):
        raise ReturnError(f"must return a list of {expected} scores{of}, got {type(result).__name__}")
    # An iterator need not end.
    values = list(values) if isinstance(values, Sized) else list(itertools.islice(values, expected + 1))
    if len(values) != expected:
        raise ReturnError(
            f"returned {len(values)} scores for {expected} completions: it must return a list of {expected} scores{of}"
        )
    return values


def as_scores(values: list, weight: float = 1.0) -> tuple[list[float], dict[int, str]]:
    """Scores, NaN for None, and what is wrong with those that are none, by place; ``weight`` is what they are multiplied by."""
    scores, wrong = [], {}
    for place, value in enumerate(values):
        try:
            score = math.nan if value is None else float(value)
            if isinstance(value, str | bytes):
                raise TypeError("a text")
        except Exception:
            wrong[place] = f"returned something that is not a number or None: {_quoted(value)}"
        else:
            if value is not None and not abs(score) <= LARGEST:
                wrong[place] = f"returned {score}, which is no finite number (None says that a reward does not apply)"
            elif abs(score * weight) > LARGEST_WEIGHTED:
                wrong[place] = f"returned {score}, which is too large with a weight of {weight:g}"
        scores.append(math.nan if place in wrong else score)
    return scores, wrong


class CallLog:
    """``log_extra`` and ``log_metric`` of one call of one reward, for ``count`` answers.

    What cannot be logged is left out and described in ``faults``. A call that was left behind goes on with its own log, which
    nobody reads any more.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.extras: dict[str, list] = {}
        self.metrics: dict[str, list[float]] = {}
        self.faults: list[str] = []
        self.seconds: float | None = None

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the seconds of the block, a part of the call."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds = (self.seconds or 0.0) + time.perf_counter() - began

    def log_extra(self, column: str, values: Iterable) -> None:
        try:
            if not isinstance(column, str):
                raise ReturnError
            self.extras[column] = _column(as_list(values, self.count))
        except Exception:
            self.faults.append(f"called log_extra({column!r}, ...) with other than a name and {self.count} values")

    def log_metric(self, name: str, value: float) -> None:
        """NaN says that there is nothing to report."""
        try:
            number = float(value)
            if not isinstance(name, str) or isinstance(value, str | bytes) or math.isinf(number):
                raise TypeError
        except Exception:
            self.faults.append(f"called log_metric({name!r}, {_quoted(value)}) with other than a name and a number")
            return
        if number == number:
            self.metrics.setdefault(name, []).append(number)


def logged_together(calls: list[tuple[CallLog, int]]) -> dict[str, list[float]]:
    """The metrics of calls with so many answers each; of several calls as if there had been one."""
    if len(calls) == 1:
        return dict(calls[0][0].metrics)
    means = [
        ({name: sum(own) / len(own) for name, own in list(log.metrics.items())}, answers) for log, answers in calls
    ]
    return {name: [value] for name, value in together(means).items()}


def _column(values: list) -> list:
    """Values of one kind, as a table of a file needs them: whole numbers, numbers, or texts."""
    values = [value.item() if isinstance(value, np.generic | Tensor) else value for value in values]
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {str}:
        return [value if value is None else value.encode(errors="replace").decode() for value in values]
    if len(kinds) == 1 and (kinds != {int} or all(value is None or abs(value) < 2**63 for value in values)):
        return values
    if kinds <= {bool, int, float}:
        return [value if value is None else float(value) for value in values]
    return [str(value) if isinstance(value, int | float) else value for value in values]


def shortened(value: Any, most: int = SHOWN) -> str:
    """``str(value)``, cut to ``most`` characters; the name of its type where it cannot be written."""
    try:
        text = str(value)
    except Exception:
        text = type(value).__name__
    return text if len(text) <= most else text[:most] + " …"


def _quoted(value: Any) -> str:
    """The value as it would stand in code, where that is not the description of a whole object."""
    return repr(shortened(value)) if isinstance(value, str) else shortened(value)
