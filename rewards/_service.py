"""What rewards that ask an HTTP service have in common: checked arguments, many requests at once, repetitions, a deadline."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import httpx

from ..threads import in_own_loop
from ._exchange import Failure, RewardServiceError, client, post, shown


MAX_DELAY = 60.0
"""Seconds between two attempts, at most, whatever ``Retry-After`` says."""

LEAST_BUSY = 0.05
"""Seconds before a service that is busy is asked again, at least."""

RAISE_DEADLINE = "Raise deadline, or give the service more to run on."


class Asked(NamedTuple):
    """What became of some requests: values in their order, repeated attempts, seconds in all, and in the mean of an answered attempt.

    ``latency`` is NaN where nothing was asked.
    """

    results: list[Any]
    retries: int
    seconds: float
    latency: float


class ServiceReward:
    """A reward that is asked over HTTP. What a failure of it does to the run is the run's to say (``reward_error``).

    It keeps its settings, and one that asks a chat model the answers it got: no socket, no thread, no key. So it can be copied,
    pickled and forked.

    Args:
        label: name of the reward, also of its metrics. None: the registered name.
        timeout: seconds of one attempt, from the connection to the last byte of the answer.
        deadline: seconds of one call with all its requests, attempts and waits.
        retries: attempts after the first, where the connection fails, time runs out or the status is 408, 429 or 5xx. A 429 or
            503 with ``Retry-After`` does not count: it is waited for up to ``deadline``.
        backoff: seconds before the first repetition, twice as many before each further one, 60 at most. A longer
            ``Retry-After`` of the service counts instead, up to 60.
        concurrency: requests at once, 1 to 256.
        api_key_env: name of the environment variable with the key, in capitals. It is read when a call begins and
            sent as ``Authorization: Bearer``; where it is not set, and for None, no key is sent.

    Attributes:
        key_hosts: hosts beside this machine that may get the key, ``name`` or ``name:port``; None: any, as in a script, whose
            author chose the URL. A reward of a recipe has those that the command line allows.
        overlaps: a call waits for a server, so that a rollout goes on meanwhile. It then gets the answers in several calls, each
            with whole groups.

    Raises:
        ValueError: an argument is none of these.
    """

    __name__ = "service"
    key_hosts: frozenset[str] | None = None
    overlaps = True

    def __init__(
        self,
        url: str,
        *,
        label: str | None = None,
        timeout: float = 30.0,
        deadline: float = 300.0,
        retries: int = 3,
        backoff: float = 0.5,
        concurrency: int = 8,
        api_key_env: str | None = None,
    ) -> None:
        named = label is None or (isinstance(label, str) and re.fullmatch(r"[\w.-]+", label))
        self._check(named, "label", label, "letters, digits and any of '_.-', or None")
        self.__name__ = label or self.__name__
        for name, seconds in (("timeout", timeout), ("deadline", deadline)):
            right = is_number(seconds) and 0 < seconds <= 1e6
            self._check(right, name, seconds, "seconds above 0 and at most 1e6, such as 30.0")
        self._check(is_number(backoff) and backoff >= 0, "backoff", backoff, "seconds, 0 or more, such as 0.5")
        self._check(is_whole(retries) and retries >= 0, "retries", retries, "a whole number, 0 or more")
        many = is_whole(concurrency) and 1 <= concurrency <= 256
        self._check(many, "concurrency", concurrency, "a whole number from 1 to 256")
        if api_key_env is not None and not (
            isinstance(api_key_env, str) and re.fullmatch("[A-Z_][A-Z0-9_]*", api_key_env)
        ):
            raise ValueError(
                f"{self.__name__}: api_key_env must be the name of an environment variable, in capitals, such as "
                "'OPENAI_API_KEY', or None. What was given is not, and is not shown in case it is a key: put the key "
                "into a variable and give the name of that."
            )
        self.url, self.shown_url = url, url.partition("?")[0]
        self.timeout, self.deadline, self.retries, self.backoff = timeout, deadline, retries, backoff
        self.concurrency, self.api_key_env = concurrency, api_key_env

    def _check(self, right: Any, field: str, value: Any, must_be: str) -> None:
        if not right:
            raise ValueError(f"{self.__name__}: {field} must be {must_be}, got {value!r}")

    def _checked_url(self, field: str, url: Any, example: str) -> str:
        """``url``, if it is an http(s) URL without a user, a password or a fragment."""
        must_be = f"a URL such as {example!r}"
        self._check(isinstance(url, str), field, url, must_be)
        shown = url.partition("?")[0]
        if "@" in shown:
            raise ValueError(
                f"{self.__name__}: {field} must be {must_be}, without a user and a password, which would end up in "
                "logs: put the key into an environment variable and give its name in api_key_env"
            )
        try:
            parts = httpx.URL(url)
            right = parts.scheme in ("http", "https") and parts.host and not parts.fragment
            right = right and (parts.port is None or 0 < parts.port < 2**16)
        except httpx.InvalidURL:
            right = False
        self._check(right and url.isascii() and url.isprintable() and " " not in url, field, shown, must_be)
        return url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shown_url!r}, label={self.__name__!r})"

    def _ask(self, bodies: list[dict], read: Callable[[Any, int], Any]) -> Asked:
        """What ``read(json, index)`` makes of the answer to each body.

        Raises:
            RewardServiceError: a request failed; the others are ended.
        """
        return in_own_loop(self._together(bodies, read, self._key()))

    async def _together(self, bodies: list[dict], read: Callable[[Any, int], Any], key: str) -> Asked:
        began, places = time.monotonic(), asyncio.Semaphore(self.concurrency)
        async with client(key) as http:

            async def one(index: int) -> tuple[Any, int, float]:
                async with places:
                    data = json.dumps(bodies[index], allow_nan=False).encode()
                    return await self._answered(http, data, partial(read, index=index), key, began + self.deadline)

            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(index)) for index in range(len(bodies))]
            except BaseExceptionGroup as several:
                raise several.exceptions[0] from None
        answers = [task.result() for task in tasks]
        retries = sum(failed for _, failed, _ in answers)
        latency = sum(seconds for _, _, seconds in answers) / len(answers) if answers else math.nan
        return Asked([value for value, _, _ in answers], retries, time.monotonic() - began, latency)

    def _fixed(self, own: dict[str, Any], extra: Any, others: tuple[str, ...]) -> dict[str, Any]:
        """What every request says: ``own`` that is not None, and an ``extra_body`` without the fields of ``own`` and ``others``."""
        taken = {*own, *others}
        right = extra is None or (isinstance(extra, Mapping) and not taken & set(extra))
        self._check(right, "extra_body", extra, f"a dict without the fields {sorted(taken)}, or None")
        try:
            json.dumps(extra, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.__name__}: extra_body must be JSON ({error})") from None
        return {name: value for name, value in own.items() if value is not None} | dict(extra or {})

    async def _answered(
        self, http: httpx.AsyncClient, data: bytes, read: Callable[[Any], Any], key: str, end: float
    ) -> tuple[Any, int, float]:
        """What ``read`` makes of the answer, how many attempts failed before it, and the seconds of the one that did not."""
        failed = busy = 0
        while True:
            try:
                left = end - time.monotonic()
                if left <= 0:
                    raise Failure(f"nothing is left of the deadline of {self.deadline:g} s", cure=RAISE_DEADLINE)
                cure = RAISE_DEADLINE if left < self.timeout else "Raise timeout or lower concurrency."
                sent = time.monotonic()
                answer = await post(http, self.url, data, min(self.timeout, left), cure)
                return read(answer), failed, time.monotonic() - sent
            except Failure as failure:
                failed += 1
                busy += failure.busy
                # Who says when to come again is well, and does not use up the attempts.
                delay = self._delay(failure, failed - busy, end)
                if delay is None:
                    raise self._error(failure, failed, key) from None
            await asyncio.sleep(delay)

    def _delay(self, failure: Failure, failed: int, end: float) -> float | None:
        """Seconds before another attempt; None where there is none. ``failed`` attempts count."""
        if failure.wait is None or failed > self.retries:
            return None
        own = max(LEAST_BUSY, self.backoff) if failure.busy else self.backoff * 2.0 ** min(failed - 1, 60)
        delay = min(MAX_DELAY, max(failure.wait, own))
        return delay if time.monotonic() + delay < end else None

    def _error(self, failure: Failure, failed: int, key: str) -> RewardServiceError:
        """The error of a request that is given up."""
        reason, body, cure = str(failure), failure.body, failure.cure
        if key:
            # Services quote what they were sent, so the key goes before anything is cut off.
            reason, body = reason.replace(key, "***"), body.replace(key.encode(), b"***")
        if failure.denied:
            cure = f"The environment variable {self.api_key_env} {'was sent as the key' if key else 'is not set'}."
            cure = cure if self.api_key_env else "Name the environment variable that holds the key in api_key_env."
        answer = f": {shown(body)}" if body else ""
        cure = cure or "Check that the service runs there and that the URL is its own."
        times = f"{failed} attempt{'' if failed == 1 else 's'}"
        return RewardServiceError(f"{self.__name__}: POST {self.shown_url}: {reason}{answer} ({times}). {cure}")

    def _key(self) -> str:
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError(
                f"{self.__name__}: the environment variable {self.api_key_env} holds characters that no key has, such "
                "as spaces or line breaks: set it again, to the key alone"
            )
        if key and not self._may_have_key():
            host = httpx.URL(self.url).host
            raise ValueError(
                f"{self.__name__}: the key in {self.api_key_env} would be sent to {host}: if that host may have it, say so on "
                f"the command line (allow_hosts=[{host}]); if not, set api_key_env to null"
            )
        return key

    def check_key(self) -> None:
        """Raises ``ValueError`` if the key of now would not be sent: to a host that may not have it, or no key at all."""
        self._key()

    def _may_have_key(self) -> bool:
        place = httpx.URL(self.url)
        return (
            self.key_hosts is None
            or is_this_machine(place.host)
            or not self.key_hosts.isdisjoint({place.host.lower(), place.netloc.decode().lower()})
        )

    def _log(self, log_metric: Callable[[str, float], None] | None, asked: Asked, failed: int) -> None:
        for name, value in self._own_metrics(asked, failed).items() if log_metric is not None else ():
            log_metric(name, value)

    def _own_metrics(self, asked: Asked, failed: int) -> dict[str, float]:
        own = {"failed": float(failed), "retries": float(asked.retries), "seconds": asked.seconds}
        return {f"{self.__name__}/{name}": value for name, value in own.items()}


def is_this_machine(host: str) -> bool:
    """Whether ``host`` is a loopback address, where a service of the user's own answers."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def is_number(value: Any) -> bool:
    """A finite number that is not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300


def is_whole(value: Any) -> bool:
    """A whole number that is not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)
