"""What rewards that ask an HTTP service have in common: checked arguments, many requests at once, a deadline."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ._attempts import RAISE_DEADLINE, Call, Failure, RewardServiceError


_GRACE = 1.0
"""Seconds past the deadline in which requests may end by themselves, with a better reason than the deadline."""


class Asked(NamedTuple):
    """What became of some requests: values and errors in their order, repeated attempts, and seconds."""

    results: list[Any]
    retries: int
    seconds: float


class ServiceReward:
    """A reward that is asked over HTTP.

    It keeps settings and nothing else: no socket, no thread, no key. So it can be copied, pickled and forked.

    Args:
        label: name of the reward, also of its metrics. None: the registered name.
        timeout: seconds of one attempt, from the connection to the last byte of the answer.
        deadline: seconds of one call with all its requests, attempts and waits.
        retries: attempts after the first, where the connection fails, time runs out or the status is 408, 429 or 5xx.
        backoff: seconds before the first repetition, twice as many before each further one, 60 at most. A longer
            ``Retry-After`` of the service counts instead, up to 60.
        concurrency: requests at once, 1 to 256.
        api_key_env: name of the environment variable with the key, in capitals. It is read when a call begins and
            sent as ``Authorization: Bearer``; where it is not set, and for None, no key is sent.
        on_error: what a request without a usable answer does: ``"raise"`` an error, or ``"none"``: its rows get None.

    Raises:
        ValueError: an argument is none of these.
    """

    __name__ = "service"

    def __init__(
        self,
        url: str,
        *,
        label: str | None,
        timeout: float,
        deadline: float,
        retries: int,
        backoff: float,
        concurrency: int,
        api_key_env: str | None,
        on_error: str,
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
        self._check(on_error in ("raise", "none"), "on_error", on_error, "'raise' or 'none'")
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
        self.concurrency, self.api_key_env, self.on_error = concurrency, api_key_env, on_error

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
            parts = urlsplit(url)
            right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.fragment
        except ValueError:
            right = False
        self._check(right and url.isascii() and url.isprintable() and " " not in url, field, shown, must_be)
        return url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shown_url!r}, label={self.__name__!r})"

    def _ask(self, bodies: list[dict], read: Callable[[Any, int], Any]) -> Asked:
        """What ``read(json, index)`` makes of the answer to each body; an error in its place where there is none.

        Raises:
            RewardServiceError: a request failed and ``on_error`` is ``"raise"``; the others are ended.
        """
        began = time.monotonic()
        call = self._call(began + self.deadline)
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix=f"reward-{self.__name__}")
        try:
            futures = [pool.submit(call.request, index, body, read) for index, body in enumerate(bodies)]
            results = self._collect(futures, call)
        finally:
            # Also on Ctrl-C: nothing more is begun, nobody sleeps, and no socket is waited for.
            call.exchanges.stop()
            pool.shutdown(wait=False, cancel_futures=True)
        failures = [result for result in results if isinstance(result, RewardServiceError)]
        if failures:
            warnings.warn(f"{failures[0]} ({len(failures)} of {len(results)} requests failed: None for their rows)")
        return Asked(results, len(call.repeated), time.monotonic() - began)

    def _log(self, log_metric: Callable[[str, float], None] | None, asked: Asked, failed: int) -> None:
        if log_metric is not None:
            log_metric(f"{self.__name__}/failed", float(failed))
            log_metric(f"{self.__name__}/retries", float(asked.retries))
            log_metric(f"{self.__name__}/seconds", asked.seconds)

    def _call(self, end: float) -> Call:
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError(
                f"{self.__name__}: the environment variable {self.api_key_env} holds characters that no key has, such "
                "as spaces or line breaks: set it again, to the key alone"
            )
        return Call(
            name=self.__name__,
            url=self.url,
            shown_url=self.shown_url,
            key=key,
            key_env=self.api_key_env,
            timeout=self.timeout,
            deadline=self.deadline,
            retries=self.retries,
            backoff=self.backoff,
            end=end,
        )

    def _collect(self, futures: list[Future], call: Call) -> list[Any]:
        late = Failure(f"no answer within the deadline of {self.deadline:g} s", cure=RAISE_DEADLINE)
        results = {}
        try:
            for future in as_completed(futures, max(0.0, call.end + _GRACE - time.monotonic())):
                results[future] = future.result()
                if self.on_error == "raise" and isinstance(results[future], RewardServiceError):
                    raise results[future]
        except TimeoutError:
            if self.on_error == "raise":
                raise call.error(1, late) from None
        return [results[future] if future in results else call.error(1, late) for future in futures]


def is_number(value: Any) -> bool:
    """A finite number that is not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300


def is_whole(value: Any) -> bool:
    """A whole number that is not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)
