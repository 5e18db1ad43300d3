"""Answers are scored as they finish: calls of rewards that wait for others begin while the rollout goes on."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..types import Sample
from .pipeline import Pipeline
from .reward_calls import Begun


def overlaps(reward: Any) -> bool:
    """Whether a reward waits for others while it is called, so that a rollout can go on meanwhile.

    Coroutine functions do, and what has the attribute ``overlaps``, as the rewards that ask a service.
    """
    while isinstance(reward, partial):
        reward = reward.func
    if hasattr(reward, "overlaps"):
        return bool(reward.overlaps)
    inner = getattr(reward, "reward", None)
    call = reward if inspect.isroutine(reward) else type(reward).__call__
    return overlaps(inner) if inner is not None else inspect.iscoroutinefunction(call)


class EarlyCalls:
    """The calls for one rollout. A reward gets the answers of whole groups, as far as they are this process's.

    A rollout of a single batch has none: then everything is scored when it is over.

    Args:
        pipe: of the run.
        rows: of all answers of the rollout on this process.
        indices: their global numbers; None = this rank's.

    Attributes:
        begun: the calls so far, for ``RewardSet.score``.
    """

    def __init__(self, pipe: Pipeline, rows: list[dict[str, Any]], indices: Sequence[int] | None = None) -> None:
        start = pipe.rank * len(rows)
        indices = range(start, start + len(rows)) if indices is None else indices
        rewards, group = pipe.rewards, pipe.args.num_generations
        self.begun: list[Begun] = []
        self._rewards, self._state, self._group = rewards, pipe.trainer_state, group
        self._places = [place for place, own in enumerate(rewards.functions) if overlaps(own)]
        self._missing = Counter(index // group for index in indices)
        self._finished: dict[int, list[Sample]] = {}
        if self._places:
            # Rows of another task, which come later, may have columns that those of the first batch lack.
            rewards.know_columns(*rows)

    @property
    def on_answers(self) -> Callable[[list[Sample]], None] | None:
        """What ``sample_answers`` tells; None where no reward overlaps."""
        return self._add if self._places else None

    def _add(self, finished: list[Sample]) -> None:
        if not self.begun and len(finished) == self._missing.total():
            return
        whole: list[Sample] = []
        for sample in finished:
            group = sample.index // self._group
            self._finished.setdefault(group, []).append(sample)
            self._missing[group] -= 1
            if not self._missing[group]:
                whole += self._finished.pop(group)
        if whole:
            whole.sort(key=lambda sample: sample.index)
            self.begun += [self._rewards.begin(place, whole, self._state) for place in self._places]
