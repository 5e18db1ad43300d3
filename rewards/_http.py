"""One bounded HTTP exchange with the standard library: bounds on its time, on its answer, on where it goes.

Time is a clock for the whole exchange. A timeout of a socket starts again with every byte, so that a server which sends
one byte a second holds its client for hours.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from threading import Event, Lock
from typing import Any, NamedTuple


MAX_ANSWER = 16 * 2**20
"""Bytes of an answer that are read; a longer one is an error."""

_PIECE = 16_384
"""Bytes sent or read at once, between two looks at the clock."""


class Answer(NamedTuple):
    """What came back, whatever its status; ``body`` is all of it."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes


class TooLong(Exception):
    """The answer is longer than ``MAX_ANSWER``; no more of it was read than that."""


class Exchanges:
    """The exchanges of one call. ``stop`` ends all of them from another thread."""

    def __init__(self) -> None:
        self.stopped = Event()
        self._lock = Lock()
        self._sockets: set[socket.socket] = set()

    def stop(self) -> None:
        """No more exchanges; whoever waits for a server is woken."""
        self.stopped.set()
        with self._lock:
            for sock in self._sockets:
                with suppress(OSError):  # It may be closed already.
                    # Past an SSLSocket's own shutdown, which is not made for two threads.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def post(self, url: str, data: bytes, headers: Mapping[str, str], seconds: float) -> Answer:
        """The answer to a POST, after at most ``seconds``, not counting the resolver of names.

        Proxies are those of ``urllib``: ``http_proxy``, ``https_proxy``, ``no_proxy``. Redirects are answers like any
        other: they are not followed.

        Raises:
            OSError: no connection, or it broke; TimeoutError where the time is over.
            http.client.HTTPException: what came back is no HTTP, or ends early.
            TooLong: see there.
        """
        request = urllib.request.Request(url, data=data, headers=dict(headers), method="POST")
        clock = _Clock(time.monotonic() + seconds, self)
        opener = urllib.request.OpenerDirector()
        # Nothing else is added: no redirects, no files, no cookies, and a status is not an exception.
        for handler in (urllib.request.ProxyHandler(), _Handler(clock)):
            opener.add_handler(handler)
        try:
            with opener.open(request, timeout=seconds) as response:
                return Answer(response.status, response.reason, response.headers, _read(response))
        except urllib.error.URLError as error:
            raise error.reason if isinstance(error.reason, Exception) else OSError(str(error.reason)) from None
        finally:
            clock.done()

    def add(self, sock: socket.socket) -> None:
        """Registers a connected socket."""
        with self._lock:
            if self.stopped.is_set():
                raise ConnectionAbortedError("the call was ended")
            self._sockets.add(sock)

    def remove(self, sock: socket.socket) -> None:
        """Forgets a socket."""
        with self._lock:
            self._sockets.discard(sock)


class _Clock:
    """The time that one exchange has left, and its socket."""

    def __init__(self, end: float, exchanges: Exchanges) -> None:
        self._end, self._exchanges, self._sock = end, exchanges, None

    def left(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def watch(self, sock: socket.socket) -> None:
        self._exchanges.add(sock)
        self._sock = sock

    def done(self) -> None:
        if self._sock is not None:
            self._exchanges.remove(self._sock)


class _Handler(urllib.request.AbstractHTTPHandler):
    """Opens connections that obey a clock."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self._clock = clock

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_Plain, clock=self._clock), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_Secure, clock=self._clock, context=_tls()), request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


class _Bounded:
    """An ``HTTPConnection`` whose every step looks at the clock."""

    def __init__(self, *arguments: Any, clock: _Clock, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._clock = clock
        self.response_class = partial(_Response, clock=clock)

    def connect(self) -> None:
        self.timeout = self._clock.left()
        super().connect()
        self._clock.watch(self.sock)

    def send(self, data: bytes) -> None:
        if self.sock is None:
            self.connect()
        for start in range(0, len(data), _PIECE):
            self.sock.settimeout(self._clock.left())
            super().send(data[start : start + _PIECE])


class _Plain(_Bounded, http.client.HTTPConnection):
    pass


class _Secure(_Bounded, http.client.HTTPSConnection):
    pass


class _Response(http.client.HTTPResponse):
    """Reads, from the status line on, through ``_Reader``."""

    def __init__(self, sock: socket.socket, *arguments: Any, clock: _Clock, **keywords: Any) -> None:
        super().__init__(sock, *arguments, **keywords)
        self.fp = io.BufferedReader(_Reader(self.fp.detach(), sock, clock), _PIECE)


class _Reader(io.RawIOBase):
    """A socket's raw file, which gives each read only the time that is left."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, clock: _Clock) -> None:
        self._raw, self._sock, self._clock = raw, sock, clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:
        self._sock.settimeout(self._clock.left())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _read(response: http.client.HTTPResponse) -> bytes:
    if (response.length or 0) > MAX_ANSWER:
        raise TooLong
    pieces, size = [], 0
    while piece := response.read(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_ANSWER:
            raise TooLong
    if response.length:
        # Reading piece by piece, http.client takes an early end for the end.
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(pieces)
