"""Every reward that asks a chat model or a reward model, under a server that is ill: the right score, None or an error, never a 0."""

from __future__ import annotations

import json
import threading
import time

import pytest

from unigrpo.rewards import get_reward
from unigrpo.rewards._exchange import RewardServiceError

from ..support.chat_servers import completion
from ..support.reward_rows import RED
from ..support.servers import in_turn, no_proxy, serving  # noqa: F401


WELL = completion("4\nA", [("4", {"4": 0.5, "yes": 0.25, "no": 0.25}), ("\n", {"\n": 1.0}), ("A", {"A": 1.0})])
"""An answer that means something to every reward."""
WELL["data"] = [{"index": 0, "probs": [0.25]}]

ROWS = {"prompts": ["p"] * 2, "completions": [RED, RED.resize((4, 4))], "questions": [[["Is it?", "yes"]]] * 2}
SCORES = {
    "judge": [4.0, 4.0],
    "pairwise_judge": [0.5, 0.5],
    "reward_model_server": [0.25, 0.25],
    "soft_tifa": [0.25, 0.25],
    "vqa_score": [0.5, 0.5],
}


def reward_of(name, seen, **arguments):
    return get_reward(name, **{"model": "m", "base_url": seen.url, "backoff": 0.0, "timeout": 30.0, **arguments})


def well(exchange):
    exchange.json(WELL)


def without_an_end(exchange):
    exchange.bytes(b'{"choices": [', length=1000)


PASSING = {
    "500": lambda exchange: exchange.json({"error": "out of memory"}, 500),
    "503 with Retry-After": lambda exchange: exchange.json({}, 503, Retry_After="0"),
    "gone in the middle": without_an_end,
    "gone at once": lambda exchange: exchange.connection.close(),
    "a drip": lambda exchange: exchange.drip(b"HTTP/1.1 200 OK\r\n", 0.2),
    "silence": lambda exchange: exchange.hang(),
}
"""What another attempt may find over."""

LASTING = {
    "no JSON": lambda exchange: exchange.bytes(b"<html>busy</html>"),
    "half of the JSON": lambda exchange: exchange.bytes(json.dumps(WELL).encode()[:-20]),
    "NaN": lambda exchange: exchange.bytes(b'{"choices": NaN, "data": [{"probs": [NaN]}]}'),
    "an error as an answer": lambda exchange: exchange.json({"error": "overloaded"}),
    "nothing": lambda exchange: exchange.json({"choices": [], "data": []}),
    "null": lambda exchange: exchange.json(None),
    "400": lambda exchange: exchange.json({"error": "too long"}, 400),
}
"""What is the same however often it is asked."""


@pytest.mark.smoke
@pytest.mark.parametrize("name", SCORES)
def test_what_passes_costs_nothing(name):
    """The first request meets each fault in turn; nothing is lost, and nothing is counted twice."""
    metrics = {}
    faults = [fault for kind, fault in PASSING.items() if kind not in ("a drip", "silence")]
    with serving(in_turn(*faults, well)) as seen:
        reward = reward_of(name, seen, retries=len(faults), concurrency=1)
        assert reward(**ROWS, log_metric=metrics.__setitem__) == SCORES[name]
    assert metrics[f"{name}/retries"] == len(faults) and len(seen.bodies) == 2 + len(faults)


@pytest.mark.parametrize("kind", ["a drip", "silence"])
def test_what_never_ends_is_asked_again_in_time(kind):
    with serving(in_turn(PASSING[kind], well)) as seen:
        began = time.monotonic()
        assert reward_of("vqa_score", seen, timeout=0.3, concurrency=1)(**ROWS) == SCORES["vqa_score"]
    assert 0.3 <= time.monotonic() - began < 10


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("kind", [*LASTING, *PASSING])
def test_what_stays_is_an_error_and_no_score(name, kind):
    bounds = {"timeout": 0.2, "retries": 1, "deadline": 0.5} if kind in PASSING else {}
    with serving({**LASTING, **PASSING}[kind]) as seen, pytest.raises(RewardServiceError) as error:
        reward_of(name, seen, **bounds)(**ROWS)
    assert str(error.value).startswith(f"{name}: POST {seen.url}/")


def test_a_server_that_is_restarted_in_the_middle_of_a_call_is_waited_for():
    """It answers a row and goes. What comes in its place at the same port gets the others, each once."""
    asked, first = [], threading.Event()

    def one_row_only(exchange):
        exchange.json(WELL) if not first.is_set() else exchange.connection.close()
        first.set()

    with serving(one_row_only) as seen:
        port = int(seen.url.rpartition(":")[2])
        reward = reward_of("judge", seen, retries=50, backoff=0.05, concurrency=1, template="{completion}")
        answers = threading.Thread(target=lambda: asked.append(reward(["p"] * 4, list("abcd"))))
        answers.start()
        assert first.wait(10)
    time.sleep(0.3)
    with serving(well, port=port) as again:
        answers.join(20)
        told = [body["messages"][0]["content"] for body in again.bodies]
    assert asked == [[4.0] * 4] and sorted(told) in (list("abcd")[1:], list("abcd"))


def test_two_runs_on_one_server_get_their_own_answers():
    def own(exchange):
        time.sleep(0.01)
        exchange.json(completion(exchange.body["messages"][0]["content"]))

    with serving(own) as seen:
        found, values = {}, {"one": range(0, 40), "two": range(40, 80)}

        def run(name):
            reward = reward_of("judge", seen, template="{completion}", scale=(0, 99), concurrency=4)
            found[name] = reward(["p"] * 40, [str(value) for value in values[name]])

        runs = [threading.Thread(target=run, args=(name,)) for name in values]
        for thread in runs:
            thread.start()
        for thread in runs:
            thread.join(30)
    assert found == {name: [float(value) for value in own] for name, own in values.items()} and len(seen.bodies) == 80
