"""``remote``: what is sent, what may come back, and that no server can hold a run longer than it was told."""

from __future__ import annotations

import base64
import io
import logging
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
from PIL import Image

from unigrpo.errors import RecipeError, RewardError
from unigrpo.rewards import get_reward
from unigrpo.rewards._exchange import MAX_ANSWER, RewardServiceError, certificates
from unigrpo.rollout.rewards import RewardSet
from unigrpo.runs.build import build_rewards
from unigrpo.runs.recipe import load_recipe
from unigrpo.types import Sample

from ..support import ROOT
from ..support.servers import in_turn, serving


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def remote(seen_or_url, **arguments):
    url = seen_or_url if isinstance(seen_or_url, str) else f"{seen_or_url.url}/score"
    return get_reward("remote", **{"url": url, "backoff": 0.0, "timeout": 30.0, **arguments})


def lengths(exchange):
    """A service that is well: the length of each completion."""
    exchange.json({"rewards": [len(completion) for completion in exchange.body["completions"]]})


def says(value, status=200, **headers):
    return lambda exchange: exchange.json(value, status, **headers)


AT_ONCE = 20.0
"""Seconds that a busy machine may need for what takes a moment; what is bounded here would else take longer or for ever."""


def wait_for_no_threads(seconds=AT_ONCE):
    for thread in threading.enumerate():
        if thread.name == "unigrpo":
            thread.join(seconds)
            assert not thread.is_alive()


def failure(reward, rows=2, **columns):
    with pytest.raises(RewardServiceError) as error:
        reward(["p"] * rows, ["c"] * rows, **columns)
    return str(error.value)


@pytest.mark.smoke
def test_rows_go_out_as_lists_and_scores_come_back():
    metrics = {}
    with serving(says({"rewards": [1, -0.5, None]})) as seen:
        scores = remote(seen)(
            prompts=["a", [{"role": "user", "content": "b"}], "c"],
            completions=["x", [{"role": "assistant", "content": "y"}], "z"],
            completion_ids=[[1], [2], [3]],
            task=["text", "mmu", None],
            images=[None, None, None],
            solution=[np.float32(0.5), {"k": (1, None)}, np.arange(2)],
            trainer_state=object(),
            log_extra=print,
            log_metric=metrics.__setitem__,
        )
    assert scores == [1.0, -0.5, None] and [type(score) for score in scores[:2]] == [float, float]
    assert seen.bodies == [
        {
            "prompts": ["a", [{"role": "user", "content": "b"}], "c"],
            "completions": ["x", "y", "z"],
            "task": ["text", "mmu", None],
            "solution": [0.5, {"k": [1, None]}, [0, 1]],
        }
    ]
    assert seen.paths == ["/score"] and seen.headers[0]["Content-Type"] == "application/json"
    assert "Authorization" not in seen.headers[0]
    assert metrics["remote/failed"] == 0 and metrics["remote/retries"] == 0 and 0 < metrics["remote/seconds"] < 5


def decoded(image):
    assert set(image) == {"type", "png"} and image["type"] == "image"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["png"]))))


def test_images_go_out_as_png_files_to_the_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    with serving(says({"rewards": [0, 0]})) as seen:
        image = Image.fromarray(pixels)
        remote(seen)(["p", "q"], [image, "text"], images=[None, [image, image.convert("CMYK")]])
    (body,) = seen.bodies
    assert np.array_equal(decoded(body["completions"][0]), pixels) and body["completions"][1] == "text"
    assert body["images"][0] is None
    assert np.array_equal(decoded(body["images"][1][0]), pixels)
    assert decoded(body["images"][1][1]).shape == (5, 7, 3)


def test_a_row_with_a_broken_image_is_left_out_and_counted(tmp_path):
    file = tmp_path / "half.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:2000])
    metrics = {}
    with serving(says({"rewards": [1, 3]})) as seen, pytest.warns(UserWarning, match="cannot be encoded"):
        scores = remote(seen)(
            ["a", "b", "c"], ["x", Image.open(file), "z"], log_metric=metrics.__setitem__, k=[1, 2, 3]
        )
    assert scores == [1.0, None, 3.0] and metrics["remote/failed"] == 1
    assert seen.bodies[0]["prompts"] == ["a", "c"] and seen.bodies[0]["k"] == [1, 3]


def test_batches_keep_their_rows_and_the_bound_on_requests():
    first = threading.Barrier(3)

    def slow(exchange):
        if exchange.number < 3:
            first.wait(AT_ONCE)  # Three requests are there at one time, and their answers come out of order.
            time.sleep(0.05 * (3 - exchange.number))
        exchange.json({"rewards": exchange.body["value"]})

    with serving(slow) as seen:
        values = list(range(23))
        scores = remote(seen, batch_size=2, concurrency=3)(["p"] * 23, ["c"] * 23, value=values)
    assert scores == values
    assert len(seen.bodies) == 12 and [len(body["prompts"]) for body in seen.bodies].count(1) == 1
    assert seen.together == 3
    wait_for_no_threads()


def test_columns_are_chosen_by_name():
    with serving(lengths) as seen:
        remote(seen, columns=["a"])(["p"], ["c"], a=[1], b=[object()])
        remote(seen, columns=[])(["p"], ["c"], a=[1], task=["t2i"])
        assert seen.bodies[0] == {"prompts": ["p"], "completions": ["c"], "a": [1]}
        assert seen.bodies[1] == {"prompts": ["p"], "completions": ["c"], "task": ["t2i"]}
        with pytest.raises(ValueError, match=r"\['z'\] are not in the dataset; its columns are: a, b"):
            remote(seen, columns=["a", "z"])(["p"], ["c"], a=[1], b=[2])
        for value, word in ((float("nan"), "nan"), (object(), "object"), ({"x": [b"1"]}, "bytes")):
            with pytest.raises(ValueError, match=f"column 'b', row 1: JSON cannot say (a )?{word}"):
                remote(seen)(["p"] * 2, ["c"] * 2, b=[None, value])
        assert len(seen.bodies) == 2


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_statuses_are_tried_again(status):
    metrics = {}
    with serving(in_turn(says("busy", status), says("busy", status), lengths)) as seen:
        assert remote(seen)(["p"], ["four"], log_metric=metrics.__setitem__) == [4.0]
    assert len(seen.bodies) == 3 and seen.bodies[0] == seen.bodies[2]
    assert metrics["remote/retries"] == 2 and metrics["remote/failed"] == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_other_statuses_are_not(status):
    with serving(says({"detail": "no  such\nthing"}, status)) as seen:
        said = failure(remote(seen))
    assert len(seen.bodies) == 1
    assert f"remote: POST {seen.url}/score: status {status} " in said
    assert "no such" in said and "(1 attempt)" in said


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

    def says_when(exchange):
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
        exchange.json("slow down", 503, Retry_After=date)

    # A date has whole seconds, and the answer is read some time after it was written.
    with serving(in_turn(says_when, lengths)) as seen:
        assert remote(seen)(["p"], ["c"]) == [1.0]
    assert 0.5 <= seen.times[1] - seen.times[0] < AT_ONCE
    monkeypatch.setattr("unigrpo.rewards._service.MAX_DELAY", 0.2)
    with serving(in_turn(says("slow down", 429, Retry_After="86400"), lengths)) as seen:
        assert remote(seen)(["p"], ["c"]) == [1.0]
    assert 0.2 <= seen.times[1] - seen.times[0] < AT_ONCE
    for nonsense in ("soon", "nan", "-5", ""):
        with serving(in_turn(says("slow down", 429, Retry_After=nonsense), lengths)) as seen:
            assert remote(seen)(["p"], ["c"]) == [1.0]


def test_a_wait_that_ends_past_the_deadline_is_not_begun():
    began = time.monotonic()
    with serving(says("slow down", 429, Retry_After="99")) as seen:
        assert "status 429" in failure(remote(seen, deadline=40.0))
    assert len(seen.bodies) == 1 and time.monotonic() - began < AT_ONCE


DRIP = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000


@pytest.mark.parametrize(
    "answer",
    [
        lambda exchange: exchange.hang(),
        lambda exchange: exchange.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Endless: yes\r\n" * 99, 0.05),
        lambda exchange: (exchange.wfile.write(DRIP[:42]), exchange.drip(b" " * 1000, 0.05)),
        lambda exchange: (
            exchange.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            exchange.drip(b"1\r\n \r\n" * 1000, 0.05),
        ),
    ],
    ids=["hangs", "drips headers", "drips its body", "drips chunks"],
)
def test_no_answer_takes_longer_than_the_timeout(answer):
    with serving(answer) as seen:
        began = time.monotonic()
        said = failure(remote(seen, timeout=0.8, retries=1))
        took = time.monotonic() - began
        assert "no complete answer within 0.8 s (2 attempts). Raise timeout" in said
        assert len(seen.bodies) == 2 and 1.6 <= took < AT_ONCE
        began = time.monotonic()
        assert "(1 attempt). Raise deadline" in failure(remote(seen, timeout=30, deadline=0.8, retries=9))
        assert len(seen.bodies) == 3 and 0.8 <= time.monotonic() - began < AT_ONCE
        wait_for_no_threads()


def test_the_deadline_holds_for_rows_that_are_still_waiting():
    with serving(in_turn(lengths, lengths, lambda exchange: exchange.hang())) as seen:
        began = time.monotonic()
        said = failure(remote(seen, batch_size=1, concurrency=2, deadline=1.5, timeout=30), rows=8)
        assert "no complete answer within" in said and "Raise deadline" in said
        assert 1.5 <= time.monotonic() - began < AT_ONCE
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
    resolved(monkeypatch, *["127.0.0.1"] * 4)
    with silent() as port:
        began = time.monotonic()
        assert "within 1.5 s" in failure(remote(f"http://some.where:{port}/", timeout=1.5, retries=0), rows=1)
        assert 1.4 <= time.monotonic() - began < 4 * 1.5


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


def test_logs_have_no_query(caplog):
    caplog.set_level(logging.DEBUG)
    with serving(lengths) as seen:
        remote(f"{seen.url}/score?token=hunter2", api_key_env=None)(["p"], ["c"])
    assert f"POST {seen.url}/score " in caplog.text and "hunter2" not in caplog.text


def test_a_server_that_does_not_read_cannot_hold_a_request():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        began = time.monotonic()
        said = failure(remote(url, timeout=0.5, retries=0), rows=1, big=["x" * 30_000_000])
        assert "no complete answer within 0.5 s" in said and time.monotonic() - began < AT_ONCE


def test_an_answer_that_ends_early_is_tried_again():
    whole = b'{"rewards": [7]}'
    cut = lambda exchange: exchange.bytes(whole[:-4], length=len(whole))  # noqa: E731
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n" + whole[:5]
    with serving(
        in_turn(cut, lambda exchange: exchange.wfile.write(chunks), lambda exchange: None, says({"rewards": [7]}))
    ) as seen:
        assert remote(seen)(["p"], ["c"]) == [7.0]
    assert len(seen.bodies) == 4
    with serving(cut) as seen:
        assert "the connection failed (RemoteProtocolError: peer closed connection" in failure(
            remote(seen, retries=1), rows=1
        )
    assert len(seen.bodies) == 2


def test_an_answer_beyond_the_bound_is_not_read():
    with serving(lambda exchange: exchange.flood(100 * 2**20)) as seen:
        said = failure(remote(seen))
    assert f"longer than {MAX_ANSWER} bytes (1 attempt)" in said and len(seen.bodies) == 1
    assert seen.written < 40 * 2**20
    with serving(lambda exchange: exchange.bytes(b"", length=MAX_ANSWER + 1)) as seen:
        assert "longer than" in failure(remote(seen))


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (b"<html><body>Welcome</body></html>", ["not JSON", "'<html><body>Welcome"]),
        (b"", ["not JSON"]),
        (b"\x89PNG", ["not JSON"]),
        (b'{"rewards": [NaN, 1]}', ["NaN is not JSON"]),
        (b'{"rewards": [1, -Infinity]}', ["-Infinity is not JSON"]),
        (b'{"rewards": [1, 1e999]}', ["item 1 is not one"]),
        (b'{"rewards": [1, ' + b"9" * 400 + b"]}", ["item 1 is not one"]),
        (b'{"rewards": ["1", 2]}', ["2 numbers or nulls", "item 0 is not one", '"1"']),
        (b'{"rewards": [1, true]}', ["item 1 is not one", "true"]),
        (b'{"rewards": [1, [2]]}', ["item 1 is not one"]),
        (b'{"rewards": [1, 2, 3]}', ["2 numbers or nulls, and has 3"]),
        (b'{"rewards": []}', ["has 0"]),
        (b'{"rewards": 1}', ["another thing"]),
        (b'{"scores": [1, 2]}', ["another thing", '"scores"']),
        (b"[1, 2]", ["another thing", "[1, 2]"]),
        (b"[" * 100_000, ["not JSON"]),
    ],
)
def test_what_was_not_agreed_is_an_error_that_says_what_was(body, parts):
    with serving(lambda exchange: exchange.bytes(body)) as seen:
        said = failure(remote(seen))
    assert len(seen.bodies) == 1, "such an answer is not asked for again"
    for part in [f"{seen.url}/score", "status 200", *parts]:
        assert part in said
    assert len(said) < 900


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status):
    with serving(lengths) as other:
        with serving(lambda exchange: exchange.json("", status, Location=f"{other.url}/x?key=secret")) as seen:
            said = failure(remote(seen))
            assert f"status {status} " in said and f"a redirect to '{other.url}/x'" in said and "final URL" in said
            assert "secret" not in said
        with serving(lambda exchange: exchange.json("", status, Location="/score")) as loop:
            assert "a redirect to '/score'" in failure(remote(loop))
        assert len(seen.bodies) == len(loop.bodies) == 1 and not other.bodies


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    said = failure(remote(f"http://127.0.0.1:{port}/score?token=secret", retries=2))
    assert f"POST http://127.0.0.1:{port}/score: the connection failed (ConnectionRefusedError" in said
    assert "(3 attempts). Check that the service runs there" in said and "secret" not in said


def test_one_failure_ends_the_others():
    with serving(in_turn(says("no", 400), lambda exchange: exchange.hang())) as seen:
        began = time.monotonic()
        assert "status 400" in failure(remote(seen, batch_size=1, concurrency=3, timeout=30), rows=50)
        assert time.monotonic() - began < AT_ONCE and len(seen.bodies) < 10
        wait_for_no_threads()


def test_what_a_failure_costs_is_for_the_run_to_say():
    rows = [Sample(row={"prompt": "p"}, completion="abc", completion_ids=[1], task="text")] * 2
    with serving(says("no", 400)) as seen, serving(lengths) as well:
        rewards = [remote(seen), remote(well, label="well")]
        with pytest.raises(RewardError, match=r"'remote' raised RewardServiceError: .*status 400"):
            RewardSet(rewards).score(rows)
        with pytest.warns(UserWarning, match=r"'remote' raised RewardServiceError: .*status 400"):
            found = RewardSet(rewards, on_error="none", timeout=30.0).score(rows)
    assert found.values[:, 0].isnan().all() and found.values[:, 1].tolist() == [3.0, 3.0]
    assert found.faults.tolist() == [[2, 0], [0, 0]] and found.lost.tolist() == [True, False]


KEY = "sk-4f9aKEY"


def test_the_key_comes_from_the_environment_and_shows_nowhere(monkeypatch):
    def echo(exchange):
        exchange.bytes(("x" * 170 + f" you sent {KEY} as {exchange.headers['Authorization']}").encode(), 401)

    reward = remote("http://127.0.0.1:1/", api_key_env="SCORES_KEY", retries=0)
    monkeypatch.setenv("SCORES_KEY", f"{KEY}\n")
    assert KEY not in repr(reward) + repr(vars(reward)) + failure(reward)
    with serving(lengths) as seen:
        remote(seen, api_key_env="SCORES_KEY")(["p"], ["c"])
    assert seen.headers[0]["Authorization"] == f"Bearer {KEY}" and KEY not in str(seen.bodies)
    with serving(echo) as seen:
        said = failure(remote(seen, api_key_env="SCORES_KEY"))
    # Also of a key that the end of what is shown would cut in two, nothing is left.
    assert "SCORES_KEY was sent as the key" in said and "you sent *** as Bear" in said and "sk-" not in said
    with serving(lambda exchange: exchange.bytes(("x" * 196 + KEY).encode(), 500)) as seen:
        assert "sk-" not in failure(remote(seen, api_key_env="SCORES_KEY", retries=0))
    monkeypatch.setenv("SCORES_KEY", f"{KEY}\r\nX-Evil: 1")
    with serving(lengths) as seen, pytest.raises(ValueError, match="SCORES_KEY holds characters") as error:
        remote(seen, api_key_env="SCORES_KEY")(["p"], ["c"])
    assert KEY not in str(error.value) and not seen.bodies
    monkeypatch.delenv("SCORES_KEY")
    with serving(says("", 401)) as seen:
        assert "SCORES_KEY is not set" in failure(remote(seen, api_key_env="SCORES_KEY"))
        assert "in api_key_env" in failure(remote(seen))
    assert "Authorization" not in seen.headers[0]


def test_a_proxy_of_the_environment_is_used_and_no_proxy_is_kept(monkeypatch):
    with serving(lengths) as proxy, serving(lengths) as seen:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert remote("http://scores.invalid/here")(["p"], ["four"]) == [4.0]
        assert proxy.paths == ["http://scores.invalid/here"] and proxy.headers[0]["Host"] == "scores.invalid"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert remote(seen)(["p"], ["four"]) == [4.0]
    assert len(proxy.bodies) == len(seen.bodies) == 1


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
        assert "within 1.5 s" in failure(remote(seen, timeout=1.5, retries=0))
        assert time.monotonic() - began < AT_ONCE


GOOD = {"url": "http://127.0.0.1:1/"}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"url": "ftp://host/x"}, "url must be a URL such as 'http"),
        ({"url": "file:///etc/passwd"}, "got 'file:///etc/passwd'"),
        ({"url": "127.0.0.1:8000"}, "url must be"),
        ({"url": "http:///x"}, "url must be"),
        ({"url": "http://h:99999/"}, "url must be"),
        ({"url": "http://h/a b"}, "url must be"),
        ({"url": "http://h/\r\nX-Evil: 1"}, "url must be"),
        ({"url": "http://h/#part"}, "url must be"),
        ({"url": 8000}, "got 8000"),
        ({"timeout": 0}, "timeout must be seconds above 0 and at most 1e6, such as 30.0, got 0"),
        ({"timeout": True}, "timeout must be"),
        ({"timeout": float("inf")}, "timeout must be"),
        ({"deadline": -1}, "deadline must be"),
        ({"deadline": 1e9}, "deadline must be"),
        ({"backoff": -0.1}, "backoff must be"),
        ({"backoff": float("nan")}, "backoff must be"),
        ({"retries": 1.5}, "retries must be a whole number, 0 or more, got 1.5"),
        ({"concurrency": 0}, "concurrency must be a whole number from 1 to 256"),
        ({"batch_size": 0}, "batch_size must be"),
        (
            {"columns": "solution"},
            r"columns must be a list of column names such as ['solution'], or None, got 'solution'",
        ),
        ({"label": "a b"}, "label must be"),
        ({"label": ""}, "label must be"),
    ],
)
def test_arguments_are_checked(arguments, part):
    with pytest.raises(ValueError, match=re.escape(part)):
        get_reward("remote", **{**GOOD, **arguments})


@pytest.mark.parametrize(
    "arguments", [{"url": "http://me:hunter2@host/"}, {"api_key_env": "hf_hunter2"}, {"api_key_env": "sk-hunter2"}]
)
def test_what_may_be_a_secret_is_refused_and_not_repeated(arguments):
    with pytest.raises(ValueError, match="environment variable") as error:
        get_reward("remote", **{**GOOD, **arguments})
    assert "hunter2" not in str(error.value)


def test_two_remotes_have_two_names():
    with serving(lengths) as seen:
        functions = [remote(seen), remote(seen, label="style"), remote(seen)]
        rewards = RewardSet(functions)
        assert rewards.names == ["remote", "style", "remote_2"]
        row = {"prompt": "p", "solution": "s"}
        found = rewards.score([Sample(row=row, completion="abc", completion_ids=[1], task="text")] * 2)
    assert found.values.tolist() == [[3.0] * 3] * 2
    assert {"style/failed", "style/retries", "style/seconds", "remote/failed"} <= set(found.metrics)
    assert seen.bodies[0] == {
        "prompts": ["p"] * 2,
        "completions": ["abc"] * 2,
        "task": ["text"] * 2,
        "solution": ["s"] * 2,
    }


RECIPE = """
model: {path: somewhere}
datasets: [{path: "builtin:arithmetic", limit: 4}]
rewards:
  - {name: judge, args: {model: m, base_url: "URL/v1", scale: [0, 5], api_key_env: null}}
  - {name: remote, task: text, args: {url: "URL/score", columns: [solution]}}
output_dir: out
use_cpu: true
"""


def test_both_are_named_in_a_recipe(tmp_path):
    def answer(exchange):
        message = {"choices": [{"message": {"content": "4/5"}}]}
        exchange.json(message if exchange.path == "/v1/chat/completions" else {"rewards": [0.5]})

    with serving(answer) as seen:
        (tmp_path / "recipe.yaml").write_text(RECIPE.replace("URL", seen.url))
        rewards = RewardSet(build_rewards(load_recipe(str(tmp_path / "recipe.yaml"), [])))
        rows = [Sample(row={"prompt": "p", "solution": 1}, completion="c", completion_ids=[1], task="text")]
        assert rewards.names == ["judge", "remote"] and rewards.score(rows).values.tolist() == [[4.0, 0.5]]
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("model: m, ", ""))
    with pytest.raises(RecipeError, match=r"args of 'judge': .*'model'"):
        build_rewards(load_recipe(str(tmp_path / "recipe.yaml"), []))


def test_no_rows_no_request():
    with serving(lengths) as seen:
        assert remote(seen)([], []) == []
    assert not seen.bodies


def test_a_reward_can_be_copied_and_forked():
    with serving(lengths) as seen:
        reward = remote(seen)
        assert reward(["p"], ["one"]) == [3.0]
        assert pickle.loads(pickle.dumps(reward))(["p"], ["one"]) == [3.0]
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(reward, (["p"], ["four"])) == [4.0]
    assert len(seen.bodies) == 3


@pytest.mark.processes
def test_ctrl_c_ends_a_call_at_once():
    code = """
import sys
from unigrpo.rewards import get_reward
try:
    get_reward("remote", url=sys.argv[1], timeout=60, batch_size=1)(["p"] * 4, ["c"] * 4)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    with serving(lambda exchange: exchange.hang()) as seen:
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


def test_the_example_is_such_a_service():
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "reward_server.py"), "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        url = process.stdout.readline().split()[-1]
        image = Image.new("RGB", (8, 8), "red")
        scores = remote(url)(
            ["p"] * 4, ["it is 7", "it is 8", "it is 9", image], solution=[7, 7, None, None], task=["x"] * 4
        )
        assert scores[:3] == [1.0, 0.0, None] and 0 < scores[3] < 1
    finally:
        process.kill()
        process.wait()
