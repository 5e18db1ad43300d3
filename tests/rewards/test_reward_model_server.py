"""``reward_model_server``: vLLM's ``/classify`` and ``/pooling``."""

from __future__ import annotations

import re

import pytest

from unigrpo.rewards import get_reward
from unigrpo.rewards._exchange import RewardServiceError
from unigrpo.testing import check_reward

from ..support.images import picture
from ..support.reward_rows import RED, answers
from ..support.servers import no_proxy, serving  # noqa: F401


def server(seen, **arguments):
    return get_reward("reward_model_server", **{"model": "m", "base_url": seen.url, "backoff": 0.0, **arguments})


def lengths(exchange):
    """A model that likes long answers."""
    content = exchange.body["messages"][-1]["content"]
    value = float(len(content)) if isinstance(content, str) else -1.5
    exchange.json({"data": [{"index": 0, "label": "LABEL_0", "probs": [value, 7.0], "num_classes": 2}]})


@pytest.mark.smoke
def test_the_request_is_vllms():
    metrics = {}
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    with serving(lengths) as seen:
        reward = server(seen, extra_body={"truncate_prompt_tokens": 9}, concurrency=1)
        said = ["ab", [{"role": "assistant", "content": "abc"}], None]
        assert reward(["p", chat, "p"], said, log_metric=metrics.__setitem__) == [2.0, 3.0, None]
        assert server(seen, base_url=f"{seen.url}/v1/", output=-1, activation=None)(["p"], ["ab"]) == [7.0]
    first, second, bare = seen.bodies
    assert first.pop("messages") == [{"role": "user", "content": "p"}, {"role": "assistant", "content": "ab"}]
    assert first == {"model": "m", "use_activation": False, "truncate_prompt_tokens": 9}
    assert second["messages"] == [*chat, {"role": "assistant", "content": "abc"}]
    assert bare.keys() == {"model", "messages"} and seen.paths == ["/classify"] * 3
    assert metrics.pop("reward_model_server/seconds") >= metrics.pop("reward_model_server/latency") > 0
    assert metrics == {"reward_model_server/failed": 0, "reward_model_server/retries": 0}


@pytest.mark.parametrize(("data", "expected"), [([0.5, 7.0], 0.5), ([[0.1], [0.2], [-3]], -3.0)])
def test_a_pooled_value_or_that_of_the_last_token(data, expected):
    with serving(lambda exchange: exchange.json({"data": [{"index": 0, "object": "pooling", "data": data}]})) as seen:
        assert server(seen, endpoint="pooling")(["p"], ["c"]) == [expected]
    assert seen.paths == ["/pooling"]


def test_pictures_are_shown_where_they_belong():
    with serving(lengths) as seen:
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
        scores = server(seen, concurrency=1)(["p", chat], [RED, "red"], images=[None, [picture(0)]])
    assert scores == [-1.5, 3.0]
    drawn, asked = (body["messages"] for body in seen.bodies)
    assert drawn[0] == {"role": "user", "content": "p"} and drawn[1]["content"][0]["type"] == "image_url"
    assert [part["type"] for part in asked[0]["content"]] == ["image_url", "text"] and asked[1]["content"] == "red"


@pytest.mark.parametrize(
    "answer",
    [{}, {"data": []}, {"data": [{"probs": []}]}, {"data": [{"probs": ["1"]}]}, {"data": [{"probs": [True]}]}, []],
)
def test_an_answer_without_the_number_is_an_error(answer):
    with serving(lambda exchange: exchange.json(answer)) as seen:
        with pytest.raises(RewardServiceError, match=r"has no such number.*--runner pooling.*output 0"):
            server(seen)(["p"], ["c"])


def test_the_protocol_is_kept():
    with serving(lengths) as seen:
        assert check_reward(server(seen), answers("a", "bb", RED)) == [1.0, 2.0, -1.5]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"model": ""}, "model must be"),
        ({"endpoint": "score"}, "endpoint must be one of ('classify', 'pooling')"),
        ({"output": 0.5}, "output must be a whole number"),
        ({"activation": "no"}, "activation must be"),
        ({"extra_body": {"messages": []}}, "extra_body must be a dict without"),
        ({"extra_body": {"x": {1}}}, "extra_body must be JSON"),
        ({"base_url": "http://h?a=1"}, "base_url must be a URL without a query"),
    ],
)
def test_arguments_are_checked(arguments, part):
    with pytest.raises(ValueError, match=f"reward_model_server: {re.escape(part)}"):
        get_reward("reward_model_server", **{"model": "m", **arguments})
