"""One request with its repetitions: what is tried again, how long is waited, and what a failure says."""

from __future__ import annotations

import email.utils
import http.client
import json
import math
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from ._http import MAX_ANSWER, Answer, Exchanges, TooLong


MAX_DELAY = 60.0
"""Seconds between two attempts, at most, whatever ``Retry-After`` says."""

_SHOWN = 200
"""Characters of an answer that an error shows."""

RAISE_DEADLINE = "Raise deadline, or give the service more to run on."


class RewardServiceError(RuntimeError):
    """A reward service gave no usable answer. The message has the URL, the reason and what to do, and no key."""


class Failure(Exception):
    """Why one attempt gave nothing.

    Attributes:
        wait: seconds before another attempt is worth it, at least; None: no other is.
        cure: what to do about it.
        body: what came back, to be shown.
    """

    def __init__(self, reason: str, *, wait: float | None = None, cure: str = "", body: bytes = b"") -> None:
        super().__init__(reason)
        self.wait, self.cure, self.body = wait, cure, body


@dataclass(slots=True, kw_only=True)
class Call:
    """The requests of one call of a reward; its methods run in threads, and its repr has no key and no query.

    Attributes:
        name: of the reward, for errors.
        shown_url: the URL as errors show it.
        key_env: environment variable of the key, or None.
        end: time of the deadline, on the monotonic clock.
        repeated: one item for each attempt after a first.
    """

    name: str
    url: str = field(repr=False)
    shown_url: str
    key: str = field(repr=False)
    key_env: str | None
    timeout: float
    deadline: float
    retries: int
    backoff: float
    end: float
    exchanges: Exchanges = field(default_factory=Exchanges)
    repeated: list[None] = field(default_factory=list)

    def request(self, index: int, body: dict, read: Callable[[Any, int], Any]) -> Any:
        """What ``read`` makes of the answer's JSON and ``index``; after the last attempt a ``RewardServiceError``."""
        attempts = 0
        data = json.dumps(body, allow_nan=False).encode()
        while True:
            try:
                attempts += 1
                return read(self._answer(data), index)
            except Failure as failure:
                error = self.error(attempts, failure)
                delay = self._delay(failure.wait, attempts)
            if delay is None or self.exchanges.stopped.wait(delay):
                return error
            self.repeated.append(None)

    def error(self, attempts: int, failure: Failure) -> RewardServiceError:
        """The error of a request that is given up."""
        reason, body = str(failure), failure.body
        if self.key:
            # Services quote what they were sent, so the key goes before anything is cut off.
            reason, body = reason.replace(self.key, "***"), body.replace(self.key.encode(), b"***")
        answer = f": {_shown(body)}" if body else ""
        cure = failure.cure or "Check that the service runs there and that the URL is its own."
        times = f"{attempts} attempt{'' if attempts == 1 else 's'}"
        return RewardServiceError(f"{self.name}: POST {self.shown_url}: {reason}{answer} ({times}). {cure}")

    def _delay(self, least: float | None, attempts: int) -> float | None:
        """Seconds before another attempt; None where there is none."""
        if least is None or attempts > self.retries or self.exchanges.stopped.is_set():
            return None
        delay = min(MAX_DELAY, max(least, self.backoff * 2.0 ** min(attempts - 1, 60)))
        return delay if time.monotonic() + delay < self.end else None

    def _answer(self, data: bytes) -> Any:
        seconds = min(self.timeout, self.end - time.monotonic())
        if seconds <= 0:
            raise Failure(f"nothing is left of the deadline of {self.deadline:g} s", cure=RAISE_DEADLINE)
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "unigrpo-rewards"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            answer = self.exchanges.post(self.url, data, headers, seconds)
        except TooLong:
            raise Failure(f"the answer is longer than {MAX_ANSWER} bytes") from None
        except TimeoutError:
            cure = RAISE_DEADLINE if seconds < self.timeout else "Raise timeout or lower concurrency."
            raise Failure(f"no complete answer within {seconds:.3g} s", wait=0.0, cure=cure) from None
        except ssl.SSLCertVerificationError as error:
            cure = "The environment variable SSL_CERT_FILE names a file with further certificates."
            raise Failure(f"its certificate is not trusted ({error.verify_message})", cure=cure) from None
        except (OSError, http.client.HTTPException) as error:
            said = f"{type(error).__name__}: {str(error)[:_SHOWN]}"
            raise Failure(f"the connection failed ({said})", wait=0.0) from None
        if not 200 <= answer.status < 300:
            raise self._refusal(answer)
        return _parse(answer)

    def _refusal(self, answer: Answer) -> Failure:
        """What a status other than 2xx means."""
        known = answer.status in set(HTTPStatus)
        reason = f"status {answer.status}{f' {HTTPStatus(answer.status).phrase}' if known else ''}"
        if answer.status in (408, 429) or answer.status >= 500:
            wait = _retry_after(answer.headers.get("Retry-After"))
            return Failure(reason, wait=wait, cure="The log of the service may say why.", body=answer.body)
        if 300 <= answer.status < 400:
            place = urlsplit(answer.headers.get("Location") or "")
            where = f"{place.scheme}://{place.netloc.rpartition('@')[2]}" if place.netloc else ""
            cure = "Redirects are not followed: give the final URL."
            return Failure(f"{reason}, a redirect to {where + place.path!r}", cure=cure)
        cure = "Check the URL and what the service expects; such a status is not tried again."
        if answer.status in (401, 403):
            sent = "was sent as the key" if self.key else "is not set"
            cure = f"The environment variable {self.key_env} {sent}."
            cure = cure if self.key_env else "Name the environment variable that holds the key in api_key_env."
        return Failure(reason, cure=cure, body=answer.body)


def _parse(answer: Answer) -> Any:
    """The JSON of an answer. NaN and the infinities, which Python's reader takes, are not JSON."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(answer.body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Failure(f"status {answer.status}, but the answer is not JSON ({error})", body=answer.body) from None


def _shown(body: bytes) -> str:
    """The beginning of an answer on one line."""
    text = " ".join(body[: 4 * _SHOWN].decode(errors="replace").split())
    return repr(text[:_SHOWN]) + ("..." if len(text) > _SHOWN or len(body) > 4 * _SHOWN else "")


def _retry_after(header: str | None) -> float:
    """Seconds that ``Retry-After`` asks for, as a number or a date; 0 where it says nothing that can be read."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
