"""Requests are scored one after the other, so many wait, the others are told when to come again."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ...errors import RewardError
from ...rollout.rewards import RewardSet, Scores
from ...threads import in_thread
from .rows import Refused, parsed


MAX_WAIT = 60
"""Seconds that ``Retry-After`` names, at most."""


class Scorer:
    """The rewards of a server, and what it has done.

    Args:
        functions: the rewards by their names.
        timeout: seconds for one call of one reward; None = no bound.
        queue: requests that may wait beside those that are scored.
        concurrency: requests that are scored at a time.
        max_rows: rows of one request.

    Attributes:
        counts: by (what, reward): ``calls`` that were answered, their ``rows``, ``none`` among these, ``seconds`` of scoring,
            ``failures`` of rewards, requests ``refused``, ``busy`` and ``abandoned``.
        held: requests that wait or are scored.
    """

    def __init__(
        self,
        functions: Mapping[str, Callable],
        *,
        timeout: float | None = 600.0,
        queue: int = 16,
        concurrency: int = 1,
        max_rows: int = 4096,
    ) -> None:
        self.functions, self.timeout, self.max_rows = dict(functions), timeout, max_rows
        self.most, self.concurrency = queue + concurrency, concurrency
        self.counts: Counter[tuple[str, str]] = Counter()
        self.held = 0
        self._places = asyncio.Semaphore(concurrency)

    @asynccontextmanager
    async def admitted(self, name: str) -> AsyncIterator[None]:
        """A place for one request, for the block.

        Raises:
            Refused: 503, there is none.
        """
        if self.held >= self.most:
            self.counts["busy", name] += 1
            raise Refused(503, f"{self.held} requests are waiting, come again in {self._wait()} s", self._wait())
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1

    async def scored(self, name: str, data: bytes, gone: Callable[[], Awaitable[bool]]) -> dict[str, Any]:
        """The answer to a request, in its turn.

        Raises:
            Refused: it cannot be read, nobody waits for it any more, or the reward failed.
        """
        async with self._places:
            if await gone():
                self.counts["abandoned", name] += 1
                raise Refused(499, "nobody waits for the answer")
            began = time.perf_counter()
            try:
                answer = await asyncio.wrap_future(in_thread(lambda: self._answer(name, data)))
            except RewardError as error:
                self.counts["failures", name] += 1
                # What the reward says of these rows it would say again; another error may pass.
                again = error.__cause__ is not None and not isinstance(
                    error.__cause__, ValueError | TypeError | KeyError
                )
                status = 500 if again else 422
                raise Refused(status, str(error)) from error
            self.counts["seconds", name] += time.perf_counter() - began
        self.counts["calls", name] += 1
        self.counts["rows", name] += len(answer["rewards"])
        self.counts["none", name] += answer["rewards"].count(None)
        return answer

    def _answer(self, name: str, data: bytes) -> dict[str, Any]:
        samples = parsed(data, self.max_rows)
        # A set of its own: the columns of one run are not those of another.
        rewards = RewardSet(functions=[self.functions[name]], timeout=self.timeout)
        rewards.names = [name]
        return as_json(rewards.score(samples))

    def _wait(self) -> int:
        """Seconds in which the requests that are held will be scored, from those that were."""
        calls = sum(count for (what, _), count in self.counts.items() if what == "calls")
        seconds = sum(count for (what, _), count in self.counts.items() if what == "seconds")
        each = seconds / calls if calls else 1.0
        return min(MAX_WAIT, max(1, math.ceil(each * self.held / self.concurrency)))


def as_json(scores: Scores) -> dict[str, Any]:
    """The scores of one reward, and what it logged."""
    answer: dict[str, Any] = {"rewards": [_plain(value) for value in scores.values[:, 0].tolist()]}
    if scores.metrics:
        answer["metrics"] = {name: sum(values) / len(values) for name, values in scores.metrics.items()}
    if scores.extras:
        answer["columns"] = {name: [_plain(value) for value in own] for name, own in scores.extras.items()}
    return answer


def _plain(value: Any) -> Any:
    """``value`` as JSON has it; None for numbers that are none, the text of what JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)
