"""One bounded HTTP exchange with the standard library: bounds on its time, on its answer, on where it goes.

Time is a clock for the whole exchange. A timeout of a socket starts again with every byte, so that a server which sends
one byte a second holds its client for hours.
"""

from __future__ import annotations

import http.client
import io
import os
import selectors
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
        """No more exchanges; whoever waits for a server is woken, also for a connection to it or for its TLS.

        Nothing wakes a thread inside the resolver of names, or, outside Linux, one that waits for a connection.
        """
        self.stopped.set()
        with self._lock:
            for sock in self._sockets:
                with suppress(OSError):  # It may be closed already.
                    # Past an SSLSocket's own shutdown, which is not made for two threads.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def post(self, url: str, data: bytes, headers: Mapping[str, str], seconds: float) -> Answer:
        """The answer to a POST, after at most ``seconds``, however many addresses the server's name has.

        Only the resolver of names can take longer; the time it takes counts, and nothing is sent once all is over.
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
        """Registers a socket that connects or is connected."""
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
        """Takes the place of the socket before it."""
        self.done()
        self._exchanges.add(sock)
        self._sock = sock

    def done(self) -> None:
        if self._sock is not None:
            self._exchanges.remove(self._sock)
            self._sock = None

    def connect(self, address: tuple[str, int], *_: Any) -> socket.socket:
        """A connection to one of a name's addresses, tried in their order; each may use its share of the time left."""
        found = socket.getaddrinfo(*address, 0, socket.SOCK_STREAM)
        error: OSError = OSError(f"the name {address[0]!r} has no address")
        for number, (family, kind, protocol, _, place) in enumerate(found):
            try:
                return self._connected(socket.socket(family, kind, protocol), place, len(found) - number)
            except OSError as failed:
                error = failed
        raise error

    def _connected(self, sock: socket.socket, place: Any, share: int) -> socket.socket:
        try:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect(place)
            # Only now can it be shut down from another thread; where all is stopped already this raises.
            self.watch(sock)
            with selectors.DefaultSelector() as selector:
                selector.register(sock, selectors.EVENT_WRITE)
                if not selector.select(self.left() / share):
                    raise TimeoutError("timed out")
            if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code))
            sock.settimeout(self.left())
            return sock
        except BaseException:
            self.done()
            sock.close()
            raise


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
        self._create_connection = clock.connect
        self.response_class = partial(_Response, clock=clock)

    def send(self, data: bytes) -> None:
        if self.sock is None:
            self.connect()
        for start in range(0, len(data), _PIECE):
            self.sock.settimeout(self._clock.left())
            super().send(data[start : start + _PIECE])


class _Plain(_Bounded, http.client.HTTPConnection):
    pass


class _Secure(_Bounded, http.client.HTTPSConnection):
    def connect(self) -> None:
        """As in ``HTTPSConnection``, with the socket registered before the handshake."""
        http.client.HTTPConnection.connect(self)
        name = self._tunnel_host or self.host
        self.sock = self._context.wrap_socket(self.sock, server_hostname=name, do_handshake_on_connect=False)
        self._clock.watch(self.sock)
        self.sock.settimeout(self._clock.left())
        self.sock.do_handshake()


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
