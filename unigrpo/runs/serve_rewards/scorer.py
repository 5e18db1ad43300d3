"""Requests are scored one after the other, so many wait, the others are told when to come again."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ...errors import Overdue, RewardError
from ...rollout.rewards import RewardSet, Scores
from ...terminal import say
from ...threads import in_thread
from .rows import Refused, parsed


MAX_WAIT = 60
"""Seconds that ``Retry-After`` names, at most."""

QUEUE_SECONDS = 5.0
"""A request may wait for its turn, so that it is told to come again before who sent it gives it up."""

MAY_PASS = (OSError, RuntimeError, MemoryError, Overdue)
"""Errors of a reward that another attempt may not meet. What else it raises it would raise again."""


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

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """One of the places for requests that are scored, for the block.

        Raises:
            Refused: 503, none was free for ``QUEUE_SECONDS``.
        """
        try:
            await asyncio.wait_for(self._places.acquire(), QUEUE_SECONDS)
        except TimeoutError:
            self.counts["busy", name] += 1
            said = f"no place was free for {QUEUE_SECONDS:g} s, come again in {self._wait()} s"
            raise Refused(503, said, self._wait()) from None
        try:
            yield
        finally:
            self._places.release()

    async def scored(self, name: str, data: bytes, gone: Callable[[], Awaitable[bool]]) -> dict[str, Any]:
        """The answer to a request, in its turn.

        Raises:
            Refused: its turn did not come in time (503), it cannot be read, nobody waits for it any more, or the reward failed.
        """
        async with self._turn(name):
            if await gone():
                self.counts["abandoned", name] += 1
                raise Refused(499, "nobody waits for the answer")
            began = time.perf_counter()
            try:
                answer = await asyncio.wrap_future(in_thread(lambda: self._answer(name, data)))
            except RewardError as error:
                self.counts["failures", name] += 1
                say(f"{name}: {' '.join(str(error).split())}")
                # ``SourceError`` and its like are ValueErrors too: a model that is not there.
                again = isinstance(error.__cause__, MAY_PASS) and not isinstance(error.__cause__, ValueError)
                raise Refused(500 if again else 422, str(error)) from error
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
