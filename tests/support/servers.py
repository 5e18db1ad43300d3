"""Servers on the loopback that answer well, badly, slowly or not at all, and remember what they were asked."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from unigrpo.rewards import get_reward
from unigrpo.rewards._exchange import RewardServiceError


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """A test module that imports it meets neither a proxy nor a key of the machine."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


class Exchange(BaseHTTPRequestHandler):
    """One request and the ways to answer it; ``number`` counts requests from 0."""

    protocol_version = "HTTP/1.1"
    body: Any
    number: int
    left = False

    def do_POST(self) -> None:
        self.close_connection = True
        self.server.seen.serve(self)

    def log_message(self, *_: Any) -> None:
        pass

    def json(self, value: Any, status: int = 200, **headers: str) -> None:
        self.bytes(json.dumps(value).encode(), status, **headers)

    def bytes(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        """An answer whose Content-Length may be a lie."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.server.seen.leave(self)
        self.end_headers()
        self.wfile.write(body)

    def drip(self, body: bytes, seconds: float) -> None:
        """Bytes one by one, status line and all, until nobody listens."""
        for byte in body:
            self.wfile.write(bytes([byte]))
            if self.server.seen.closed.wait(seconds):
                return

    def flood(self, size: int) -> None:
        """An answer of ``size`` bytes without a declared length."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(size // 65536):
            self.wfile.write(b"1" * 65536)
            self.server.seen.written += 65536

    def hang(self) -> None:
        """No answer."""
        self.server.seen.closed.wait(30)


class Seen:
    """What a server saw.

    Attributes:
        bodies: JSON of the requests, a list where it comes line by line, in order of arrival; ``headers`` and ``paths`` likewise.
        together: the most requests that were being answered at one time.
        times: when each came, on the monotonic clock.
        written: bytes that ``flood`` got rid of.
    """

    def __init__(self, answer: Callable[[Exchange], None]) -> None:
        self.answer = answer
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.together = self.now = self.written = 0
        self.closed = threading.Event()
        self.lock = threading.Lock()
        self.url = ""

    def serve(self, exchange: Exchange) -> None:
        raw = exchange.rfile.read(int(exchange.headers["Content-Length"]))
        with self.lock:
            lines = raw.splitlines() if "ndjson" in exchange.headers.get("Content-Type", "") else None
            body = json.loads(raw) if lines is None else [json.loads(line) for line in lines]
            exchange.number, exchange.body = len(self.bodies), body
            self.bodies.append(exchange.body)
            self.headers.append(dict(exchange.headers))
            self.paths.append(exchange.path)
            self.times.append(time.monotonic())
            self.now += 1
            self.together = max(self.together, self.now)
        try:
            self.answer(exchange)
        except (ConnectionError, TimeoutError):
            pass  # The client had enough.
        finally:
            self.leave(exchange)

    def leave(self, exchange: Exchange) -> None:
        """The request counts no longer as being answered: before its last byte, after which the next may come."""
        with self.lock:
            self.now -= not exchange.left
            exchange.left = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        pass  # A client that leaves is what some tests are about.


@contextmanager
def serving(answer: Callable[[Exchange], None], tls: ssl.SSLContext | None = None, port: int = 0):
    """A server that answers by ``answer``, at a free port unless one is given; its ``Seen`` has a ``url`` without a slash at its end."""
    server = _Server(("127.0.0.1", port), Exchange)
    seen = server.seen = Seen(answer)
    seen.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    if tls:
        # The handshake belongs into the thread of the request, not into the one that accepts.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        seen.closed.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def lengths(exchange: Exchange) -> None:
    """A service that is well: the length of each completion."""
    exchange.json({"rewards": [len(completion) for completion in exchange.body["completions"]]})


def hangs(exchange: Exchange) -> None:
    exchange.hang()


def says(value: Any, status: int = 200, **headers: str) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.json(value, status, **headers)


def remote(seen_or_url: Seen | str, **arguments: Any) -> Any:
    """The reward ``remote`` that asks there, at once again after a failure."""
    url = seen_or_url if isinstance(seen_or_url, str) else f"{seen_or_url.url}/score"
    return get_reward("remote", **{"url": url, "backoff": 0.0, "timeout": 30.0, **arguments})


def failure(reward: Any, rows: int = 2, **columns: Any) -> str:
    """What the reward says when it gives up."""
    with pytest.raises(RewardServiceError) as error:
        reward([f"p{row}" for row in range(rows)], ["c"] * rows, **columns)
    return str(error.value)


def in_turn(*answers: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
    """The first request gets the first answer, and so on; the last answer stays."""
    return lambda exchange: answers[min(exchange.number, len(answers) - 1)](exchange)
