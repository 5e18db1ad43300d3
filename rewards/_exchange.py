"""One bounded HTTP exchange on httpx: bounds on its time, on its answer, on where it goes; and what a failure says."""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import math
import ssl
import time
from functools import cache
from http import HTTPStatus
from typing import Any

import httpx


MAX_ANSWER = 16 * 2**20
"""Bytes of an answer that are read; a longer one is an error."""

SHOWN = 200
"""Characters of an answer that an error shows."""


LOOK = "The log of the service may say why."


class RewardServiceError(RuntimeError):
    """A reward service gave no usable answer. The message has the URL, the reason and what to do, and no key."""


class Failure(Exception):
    """Why one attempt gave nothing.

    Attributes:
        wait: seconds before another attempt is worth it, at least; None: no other is.
        busy: whether the service is well, and says when to come again.
        cure: what to do about it.
        body: what came back, to be shown.
        denied: whether the key was refused, or missing.
    """

    def __init__(
        self,
        reason: str,
        *,
        wait: float | None = None,
        cure: str = "",
        body: bytes = b"",
        denied: bool = False,
        busy: bool = False,
    ) -> None:
        super().__init__(reason)
        self.wait, self.cure, self.body, self.denied, self.busy = wait, cure, body, denied, busy


def client(key: str) -> httpx.AsyncClient:
    """For the exchanges of one call: no redirects, no compression, a connection for each, time bounded by ``post`` alone.

    Proxies are those of the environment: ``http_proxy``, ``https_proxy``, ``all_proxy``, ``no_proxy``.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "unigrpo-rewards"}
    # Unpacked, a small answer may be a large one.
    headers["Accept-Encoding"] = "identity"
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return httpx.AsyncClient(
        headers=headers,
        verify=certificates(),
        timeout=None,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        follow_redirects=False,
    )


@cache
def certificates() -> ssl.SSLContext:
    """Those of the system, as everything else on the machine has them, and not those that httpx brings."""
    return ssl.create_default_context()


async def post(client: httpx.AsyncClient, url: str, data: bytes, seconds: float, cure: str) -> Any:
    """The JSON that answers a POST, in at most ``seconds`` for all of it: a timeout of httpx starts again with every byte.

    Raises:
        Failure: anything else; with ``cure`` where the time is over.
    """
    body = bytearray()
    too_long = Failure(f"the answer is longer than {MAX_ANSWER} bytes")
    try:
        async with asyncio.timeout(seconds), client.stream("POST", url, content=data) as answer:
            if int(answer.headers.get("Content-Length", 0)) > MAX_ANSWER:
                raise too_long
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > MAX_ANSWER:
                    raise too_long
    except TimeoutError:
        raise Failure(f"no complete answer within {seconds:.3g} s", wait=0.0, cure=cure) from None
    except httpx.TransportError as error:
        raise _broken(error) from None
    if not answer.is_success:
        raise _refusal(answer, bytes(body))
    return _parse(answer.status_code, bytes(body))


def shown(body: bytes) -> str:
    """The beginning of an answer on one line."""
    text = " ".join(body[: 4 * SHOWN].decode(errors="replace").split())
    return repr(text[:SHOWN]) + ("..." if len(text) > SHOWN or len(body) > 4 * SHOWN else "")


def _broken(error: BaseException) -> Failure:
    """The failure of a connection, in the words of what it came from."""
    while cause := next(iter(getattr(error, "exceptions", ())), None) or error.__cause__ or error.__context__:
        error = cause
    if isinstance(error, ssl.SSLCertVerificationError):
        cure = "The environment variable SSL_CERT_FILE names a file with further certificates."
        return Failure(f"its certificate is not trusted ({error.verify_message})", cure=cure)
    return Failure(f"the connection failed ({type(error).__name__}: {str(error)[:SHOWN]})", wait=0.0)


def _refusal(answer: httpx.Response, body: bytes) -> Failure:
    """What a status other than 2xx means."""
    status = answer.status_code
    reason = f"status {status}{f' {HTTPStatus(status).phrase}' if status in set(HTTPStatus) else ''}"
    if status in (408, 429) or status >= 500:
        after = answer.headers.get("Retry-After")
        busy = status in (429, 503) and after is not None
        cure = "The service has more to do than it can: lower concurrency, or raise deadline." if busy else LOOK
        return Failure(reason, wait=_retry_after(after), cure=cure, body=body, busy=busy)
    if answer.has_redirect_location:
        try:
            place = httpx.URL(answer.headers["Location"]).copy_with(userinfo=b"", query=None, fragment=None)
        except httpx.InvalidURL:
            place = "what is no URL"
        cure = "Redirects are not followed: give the final URL."
        return Failure(f"{reason}, a redirect to {str(place)!r}", cure=cure)
    cure = "Check the URL and what the service expects; such a status is not tried again."
    return Failure(reason, cure=cure, body=body, denied=status in (401, 403))


def _parse(status: int, body: bytes) -> Any:
    """The JSON of an answer. NaN and the infinities, which Python's reader takes, are not JSON."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Failure(f"status {status}, but the answer is not JSON ({error})", body=body) from None


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


def _without_query(record: logging.LogRecord) -> bool:
    """httpx logs whole URLs, and a query may hold a key."""
    if isinstance(record.args, tuple):
        record.args = tuple(own.copy_with(query=None) if isinstance(own, httpx.URL) else own for own in record.args)
    return True


logging.getLogger("httpx").addFilter(_without_query)
