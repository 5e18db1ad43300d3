"""``remote``: no server holds a run longer than it was told, or reads and sends more than is agreed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest

from unigrpo.rewards._exchange import MAX_ANSWER, certificates

from ..support import ROOT
from ..support.servers import failure, hangs, in_turn, lengths, no_proxy, remote, says, serving  # noqa: F401


AT_ONCE = 20.0
"""Seconds that a busy machine may need for what takes a moment; what is bounded here would else take longer or for ever."""


OTHERS: set[threading.Thread] = set()
"""Threads that were there before the test: a reward of another file may hang for longer than this one runs."""


@pytest.fixture(autouse=True)
def others():
    OTHERS.clear()
    OTHERS.update(threading.enumerate())


def wait_for_no_threads(seconds=AT_ONCE):
    for thread in set(threading.enumerate()) - OTHERS:
        if thread.name == "unigrpo":
            thread.join(seconds)
            assert not thread.is_alive()


def test_batches_keep_their_rows_and_the_bound_on_requests():
    first = threading.Barrier(3)

    def slow(exchange):
        if exchange.number < 3:
            first.wait(AT_ONCE)  # Three requests are there at one time, and their answers come out of order.
            time.sleep(0.05 * (3 - exchange.number))
        exchange.json({"rewards": exchange.body["value"]})

    with serving(slow) as seen:
        values = list(range(23))
        scores = remote(seen, batch_size=2, concurrency=3)([f"p{value}" for value in values], ["c"] * 23, value=values)
    assert scores == values
    assert len(seen.bodies) == 12 and [len(body["prompts"]) for body in seen.bodies].count(1) == 1
    assert seen.together == 3
    wait_for_no_threads()


def test_attempts_are_counted_and_wait_twice_as_long_each_time():
    with serving(says("down", 503)) as seen:
        said = failure(remote(seen, retries=3, backoff=0.1))
    assert len(seen.bodies) == 4 and "status 503 Service Unavailable: '\"down\"' (4 attempts)" in said
    gaps = np.diff(seen.times)
    assert np.all(gaps >= [0.1, 0.2, 0.4]) and np.all(gaps < AT_ONCE), gaps


def test_retry_after_is_honoured_as_seconds_and_as_a_date_and_is_bounded(monkeypatch):
    with serving(in_turn(says("slow down", 429, Retry_After="0.4"), lengths)) as seen:
        assert remote(seen)(["p"], ["c"]) == [1.0]
    assert 0.4 <= seen.times[1] - seen.times[0] < AT_ONCE

    dates = []

    def says_when(exchange):
        # A date has whole seconds.
        dates.append((datetime.now(UTC) + timedelta(seconds=1.5)).replace(microsecond=0))
        exchange.json("slow down", 503, Retry_After=format_datetime(dates[0], usegmt=True))

    def again(exchange):
        dates.append(datetime.now(UTC))
        lengths(exchange)

    with serving(in_turn(says_when, again)) as seen:
        assert remote(seen)(["p"], ["c"]) == [1.0]
    assert dates[0] <= dates[1] and seen.times[1] - seen.times[0] < AT_ONCE
    monkeypatch.setattr("unigrpo.rewards._service.MAX_DELAY", 0.2)
    with serving(in_turn(says("slow down", 429, Retry_After="86400"), lengths)) as seen:
        assert remote(seen)(["p"], ["c"]) == [1.0]
    assert 0.2 <= seen.times[1] - seen.times[0] < AT_ONCE
    for nonsense in ("soon", "nan", "-5", ""):
        with serving(in_turn(says("slow down", 429, Retry_After=nonsense), lengths)) as seen:
            assert remote(seen)(["p"], ["c"]) == [1.0]


def test_who_says_when_to_come_again_uses_up_no_attempt_and_is_waited_for_to_the_deadline():
    busy = says("busy", 503, Retry_After="0")
    with serving(in_turn(*[busy] * 6, says("no", 500), *[busy] * 3, lengths)) as seen:
        metrics = {}
        assert remote(seen, retries=1)(["p"], ["four"], log_metric=metrics.__setitem__) == [4.0]
    assert len(seen.bodies) == 11 and metrics["remote/retries"] == 10
    assert min(np.diff(seen.times[:6])) >= 0.05
    with serving(busy) as seen:
        said = failure(remote(seen, retries=0, deadline=0.7))
    # The deadline comes between two requests, or in the middle of one.
    assert re.search("status 503 .*lower concurrency, or raise deadline|no complete answer .*Raise deadline", said)
    assert 2 <= len(seen.bodies) <= 15 and seen.times[-1] - seen.times[0] < 0.7
    with serving(in_turn(*[busy] * 2, says("no", 500))) as seen:
        assert "status 500" in failure(remote(seen, retries=1))
    assert len(seen.bodies) == 4, "two that do not count, and two that do"


def test_a_storm_loses_nothing_and_doubles_nothing():
    """Every request fails in another way first; each row has its own score in the end, and none a zero."""
    done, failed = [], []
    lock = threading.Lock()

    def storm(exchange):
        values = exchange.body["value"]
        with lock:
            kind = failed.count(values)
            failed.append(values)
        if kind == 0:
            return exchange.json("down", 500)
        if kind == 1:
            return exchange.bytes(b'{"rewards": [', length=1000)
        if kind == 2:
            return exchange.json("busy", 503, Retry_After="0.05")
        if kind == 3 and values[0] % 4 == 0:
            return exchange.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + b" " * 99999, 0.05)
        with lock:
            done.extend(values)
        return exchange.json({"rewards": [None if value % 5 == 0 else value + 0.5 for value in values]})

    with serving(storm) as seen:
        values = list(range(1, 15))
        reward = remote(seen, batch_size=2, timeout=1.0, retries=3)
        scores = reward([f"p{value}" for value in values], ["c"] * 14, value=values)
    assert scores == [None if value % 5 == 0 else value + 0.5 for value in values]
    assert sorted(done) == values


def test_a_wait_that_ends_past_the_deadline_is_not_begun():
    began = time.monotonic()
    with serving(says("slow down", 429, Retry_After="99")) as seen:
        assert "status 429" in failure(remote(seen, deadline=40.0))
    assert len(seen.bodies) == 1 and time.monotonic() - began < AT_ONCE


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


DRIP = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000


NEVER_ENDING = {
    "hangs": hangs,
    "drips headers": lambda exchange: exchange.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Endless: yes\r\n" * 99, 0.05),
    "drips its body": lambda exchange: (exchange.wfile.write(DRIP[:42]), exchange.drip(b" " * 1000, 0.05)),
    "drips chunks": lambda exchange: (exchange.wfile.write(CHUNKED), exchange.drip(b"1\r\n \r\n" * 1000, 0.05)),
}


def test_no_answer_takes_longer_than_the_timeout():
    def check(kind):
        with serving(NEVER_ENDING[kind]) as seen:
            began = time.monotonic()
            said = failure(remote(seen, timeout=0.6, retries=1))
            took = time.monotonic() - began
            assert "no complete answer within 0.6 s (2 attempts). Raise timeout" in said, kind
            assert len(seen.bodies) == 2 and 1.2 <= took < AT_ONCE, kind
            began = time.monotonic()
            assert "(1 attempt). Raise deadline" in failure(remote(seen, timeout=30, deadline=0.6, retries=9)), kind
            assert len(seen.bodies) == 3 and 0.6 <= time.monotonic() - began < AT_ONCE, kind

    # All at once: each is a wait.
    with ThreadPoolExecutor() as pool:
        list(pool.map(check, NEVER_ENDING))
    wait_for_no_threads()


def test_the_deadline_holds_for_rows_that_are_still_waiting():
    with serving(in_turn(lengths, lengths, hangs)) as seen:
        began = time.monotonic()
        said = failure(remote(seen, batch_size=1, concurrency=2, deadline=0.8, timeout=30), rows=8)
        assert "no complete answer within" in said and "Raise deadline" in said
        assert 0.8 <= time.monotonic() - began < AT_ONCE
        assert len(seen.bodies) == 4
        wait_for_no_threads()


def test_the_deadline_holds_where_a_name_is_never_resolved(monkeypatch):
    # A resolver of names knows no timeout, and no end from outside.
    free = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: free.wait(60) or [])
    began = time.monotonic()
    try:
        said = failure(remote("http://some.where/", deadline=0.3))
        assert "no complete answer within" in said and "Raise deadline" in said
        assert 0.3 <= time.monotonic() - began < AT_ONCE
        monkeypatch.undo()
    finally:
        free.set()
    wait_for_no_threads()


@contextmanager
def silent(host="127.0.0.1", port=0):
    """A port on which nobody takes a connection, and nobody refuses one."""
    with socket.socket() as listener, ExitStack() as waiting:
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(4):  # Until its queue is full.
            sock = waiting.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def resolved(monkeypatch, *hosts):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in hosts]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def test_all_addresses_of_a_name_share_one_clock(monkeypatch):
    resolved(monkeypatch, *["127.0.0.1"] * 10)
    with silent() as port:
        began = time.monotonic()
        assert "within 0.6 s" in failure(remote(f"http://some.where:{port}/", timeout=0.6, retries=0), rows=1)
        assert 0.5 <= time.monotonic() - began < 10 * 0.6


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the loopback has one address")
def test_an_address_that_answers_is_reached_past_one_that_does_not(monkeypatch):
    resolved(monkeypatch, "127.0.0.2", "127.0.0.1")
    with serving(lengths) as seen, silent("127.0.0.2", int(seen.url.rpartition(":")[2])) as port:
        assert remote(f"http://some.where:{port}/", timeout=4.0, retries=0)(["p"], ["four"]) == [4.0]


def test_a_name_without_an_address_is_an_error(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    said = failure(remote("http://some.where/", retries=0), rows=1)
    assert "the connection failed (gaierror: [Errno -2] Name or service not known)" in said


def test_a_server_that_is_silent_in_tls_is_bounded():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        assert "within 0.4 s" in failure(remote(url, timeout=0.4, retries=0), rows=1)
        assert time.monotonic() - began < AT_ONCE
    wait_for_no_threads()


def test_a_server_that_does_not_read_cannot_hold_a_request():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        began = time.monotonic()
        said = failure(remote(url, timeout=0.5, retries=0), rows=1, big=["x" * 30_000_000])
        assert "no complete answer within 0.5 s" in said and time.monotonic() - began < AT_ONCE


def test_an_answer_that_ends_early_is_tried_again():
    whole, nothing = b'{"rewards": [7]}', lambda exchange: None
    cut = lambda exchange: exchange.bytes(whole[:-4], length=len(whole))  # noqa: E731
    half = lambda exchange: exchange.wfile.write(CHUNKED + b"10\r\n" + whole[:5])  # noqa: E731
    with serving(in_turn(cut, half, nothing, says({"rewards": [7]}))) as seen:
        assert remote(seen)(["p"], ["c"]) == [7.0]
    assert len(seen.bodies) == 4
    with serving(cut) as seen:
        said = failure(remote(seen, retries=1), rows=1)
    assert "the connection failed (RemoteProtocolError: peer closed connection" in said and len(seen.bodies) == 2


def test_an_answer_beyond_the_bound_is_not_read():
    with serving(lambda exchange: exchange.flood(100 * 2**20)) as seen:
        said = failure(remote(seen))
    assert f"longer than {MAX_ANSWER} bytes (1 attempt)" in said and len(seen.bodies) == 1
    assert seen.written < 40 * 2**20
    with serving(lambda exchange: exchange.bytes(b"", length=MAX_ANSWER + 1)) as seen:
        assert "longer than" in failure(remote(seen))


def test_one_failure_ends_the_others():
    with serving(in_turn(says("no", 400), hangs)) as seen:
        began = time.monotonic()
        assert "status 400" in failure(remote(seen, batch_size=1, concurrency=3, timeout=30), rows=50)
        assert time.monotonic() - began < AT_ONCE and len(seen.bodies) < 10
        wait_for_no_threads()


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the program openssl, which makes the certificate")
def test_https_checks_the_certificate(tmp_path, monkeypatch, request):
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with serving(in_turn(lengths, lambda exchange: exchange.drip(DRIP, 0.05)), tls=context) as seen:
        assert "its certificate is not trusted (self" in failure(remote(seen))
        assert not seen.bodies
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        certificates.cache_clear()
        request.addfinalizer(certificates.cache_clear)
        assert remote(seen)(["p"], ["x" * 1_000_000]) == [1e6]
        began = time.monotonic()
        assert "within 0.6 s" in failure(remote(seen, timeout=0.6, retries=0))
        assert time.monotonic() - began < AT_ONCE


def test_a_group_is_never_cut():
    with serving(lengths) as seen:
        remote(seen, batch_size=3, concurrency=1)(list("aabbbbcdd"), ["c"] * 9)
    assert ["".join(body["prompts"]) for body in seen.bodies] == ["aa", "bbbb", "cdd"]


@pytest.mark.processes
def test_ctrl_c_ends_a_call_at_once():
    code = """
import sys
from unigrpo.rewards import get_reward
try:
    get_reward("remote", url=sys.argv[1], timeout=60, batch_size=1)(list("pqrs"), ["c"] * 4)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    with serving(hangs) as seen:
        process = subprocess.Popen([sys.executable, "-c", code, seen.url], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            end = time.monotonic() + 30
            while len(seen.bodies) < 4:
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGINT)
            began = time.monotonic()
            assert process.communicate(timeout=30)[0] == "interrupted\n" and process.returncode == 0
            assert time.monotonic() - began < AT_ONCE
        finally:
            process.kill()
