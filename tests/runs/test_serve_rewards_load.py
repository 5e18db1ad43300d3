"""`unigrpo serve-rewards` under load: a bounded queue, senders that leave, bodies that never end."""

from __future__ import annotations

import re
import socket
import threading
import time

import httpx
import pytest

from unigrpo.runs.serve_rewards import app as server_app
from unigrpo.runs.serve_rewards import scorer as server_scorer

from ..support.reward_servers import GOOD, graded, posted, reward_server
from ..support.servers import failure, no_proxy, remote  # noqa: F401


class Held:
    """A reward that answers when it is let."""

    def __init__(self):
        self.go, self.inside, self.most, self.calls = threading.Event(), 0, 0, 0
        self.lock = threading.Lock()

    def __call__(self, completions, **_):
        with self.lock:
            self.inside, self.calls = self.inside + 1, self.calls + 1
            self.most = max(self.most, self.inside)
        self.go.wait(20)
        with self.lock:
            self.inside -= 1
        return [float(len(own)) for own in completions]


def in_background(call, *arguments):
    found = []
    thread = threading.Thread(target=lambda: found.append(call(*arguments)), daemon=True)
    thread.start()
    return thread, found


def held(url):
    return httpx.get(f"{url}/health", trust_env=False).json()["held"]


def busy(url):
    """How many requests found no place."""
    return int(re.search(r'busy_total\{reward="held"\} (\d+)', httpx.get(f"{url}/metrics", trust_env=False).text)[1])


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def impatient(monkeypatch):
    """Who is told to come again in 2 s comes in 0.1."""
    monkeypatch.setattr("unigrpo.rewards._service.MAX_DELAY", 0.1)


def test_a_full_queue_says_when_to_come_again_and_loses_nothing(impatient):
    """Five clients with ten requests at a server that holds two: all get their own scores, one at a time, each once."""
    reward = Held()
    with reward_server({"held": reward}, queue=1) as url:
        asked = remote(f"{url}/score", retries=0, batch_size=1)
        first = [in_background(asked, ["p", "q"], ["x" * place, "x" * (place + 10)]) for place in range(5)]
        wait_for(lambda: held(url) == 2)
        status, said, headers = posted(f"{url}/score", GOOD)
        assert (status, headers["Retry-After"]) == (503, "2") and said == "2 requests are waiting, come again in 2 s"
        reward.go.set()
        for place, (thread, found) in enumerate(first):
            thread.join(60)
            assert found == [[float(place), float(place + 10)]]
        counted = httpx.get(f"{url}/metrics", trust_env=False).text
    assert reward.most == 1 and reward.calls == 10
    lines = dict(line.rsplit(" ", 1) for line in counted.splitlines() if not line.startswith("#"))
    assert (
        lines['unigrpo_reward_calls_total{reward="held"}'] == lines['unigrpo_reward_rows_total{reward="held"}'] == "10"
    )
    assert int(lines['unigrpo_reward_busy_total{reward="held"}']) >= 1 and lines["unigrpo_requests_held"] == "0"
    assert float(lines['unigrpo_reward_seconds_total{reward="held"}']) > 0


def test_who_waits_too_long_is_told_to_come_again_and_loses_no_attempt(monkeypatch, impatient):
    monkeypatch.setattr(server_scorer, "QUEUE_SECONDS", 0.05)
    reward = Held()
    with reward_server({"held": reward}, queue=4) as url:
        thread, _ = in_background(posted, f"{url}/score", GOOD)
        wait_for(lambda: held(url) == 1)
        status, said, headers = posted(f"{url}/score", GOOD)
        assert (status, headers["Retry-After"]) == (503, "2") and "no place was free for 0.05 s" in said
        late, found = in_background(remote(f"{url}/score", retries=0), ["p"], ["abc"])
        wait_for(lambda: busy(url) >= 2)
        reward.go.set()
        late.join(20)
        thread.join(20)
    assert found == [[3.0]] and reward.calls == 2


def test_nobody_is_scored_who_has_left():
    reward = Held()
    with reward_server({"held": reward}, queue=4) as url:
        thread, _ = in_background(posted, f"{url}/score", GOOD)
        wait_for(lambda: held(url) == 1)
        said = failure(remote(f"{url}/score", retries=0, timeout=0.5))
        assert "no complete answer within 0.5 s" in said and held(url) == 2
        reward.go.set()
        thread.join(20)
        wait_for(lambda: held(url) == 0)
        assert reward.calls == 1
        assert 'abandoned_total{reward="held"} 1' in httpx.get(f"{url}/metrics", trust_env=False).text


def test_a_body_that_drips_is_given_up(monkeypatch):
    monkeypatch.setattr(server_app, "READ_SECONDS", 0.3)
    with reward_server({"graded": graded}) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as slow:
            slow.sendall(
                b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
            )
            slow.settimeout(20)
            assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert held(url) == 0
