"""``judge``: the question, the images, the number, failing rows. A real server: `test_judge_servers`."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import threading
import time

import numpy as np
import pytest
from PIL import Image

from unigrpo.rewards import get_reward
from unigrpo.rewards._exchange import RewardServiceError
from unigrpo.rewards._template import Template, prompt_text

from ..support.servers import in_turn, no_proxy, serving  # noqa: F401
from ..support.tiny_scorers import Broken


def judge(seen, **arguments):
    defaults = {"model": "m", "base_url": f"{seen.url}/v1", "backoff": 0.0, "timeout": 30.0}
    return get_reward("judge", **{**defaults, **arguments})


def completion(text, finish_reason="stop"):
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {"object": "chat.completion", "choices": [choice], "usage": {"prompt_tokens": 21, "completion_tokens": 2}}


def says(text, finish_reason="stop"):
    return lambda exchange: exchange.json(completion(text, finish_reason))


def question(body):
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def echo(exchange):
    """A judge that gives the number behind 'worth'."""
    exchange.json(completion(re.search(r"worth (\S+)", question(exchange.body))[1]))


def score(text, finish_reason="stop", **arguments):
    with serving(says(text, finish_reason)) as seen:
        return judge(seen, **arguments)(["p"], ["c"])[0]


@pytest.mark.smoke
def test_the_request_is_openais():
    metrics = {}
    with serving(says("7")) as seen:
        reward = judge(seen, system="Be {fair}.", max_tokens=9, extra_body={"seed": 3})
        assert reward(["What is 1 + 1?"], ["2"], log_metric=metrics.__setitem__) == [7.0]
        judge(seen, base_url=f"{seen.url}/v1/", max_tokens=None, temperature=None)(["p"], ["c"])
    body, bare = seen.bodies
    system, user = body.pop("messages")
    assert body == {"model": "m", "max_tokens": 9, "temperature": 0.0, "seed": 3}
    assert system == {"role": "system", "content": "Be {fair}."}
    assert user["role"] == "user" and user["content"] == (
        "How good is the response to the prompt? Give it a number from 0, the worst, to 10, the best.\n\n"
        "Prompt:\nWhat is 1 + 1?\n\nResponse:\n2\n\nReply with the number alone."
    )
    assert seen.paths == ["/v1/chat/completions"] * 2 and "Authorization" not in seen.headers[0]
    assert metrics["judge/seconds"] >= metrics.pop("judge/latency") > 0 and metrics.pop("judge/seconds")
    assert metrics.pop("judge/prompt_tokens") == 21 and metrics.pop("judge/completion_tokens") == 2
    assert metrics == {"judge/failed": 0, "judge/retries": 0, "judge/unparsable": 0, "judge/cached": 0}
    assert bare.keys() == {"model", "messages"}


def test_every_row_gets_its_own_score_and_no_more_requests_run_than_allowed():
    first = threading.Barrier(5)

    def slow(exchange):
        if exchange.number < 5:
            first.wait(20)  # Five requests are there at one time, and their answers come out of order.
            time.sleep(0.03 * (5 - exchange.number))
        echo(exchange)

    values = [index / 4 for index in range(30)]
    with serving(slow) as seen:
        scores = judge(seen, concurrency=5)([f"p{i}" for i in range(30)], [f"worth {value}" for value in values])
    assert scores == values and len(seen.bodies) == 30 and seen.together == 5


def test_values_are_not_looked_into():
    completions = ["{solution} {{prompt}} {x.__class__} \\1 \\g<0>", "}{", "{", "%s"]
    with serving(says("1")) as seen:
        judge(seen, template="{completion}|{solution}|{low}-{high}|{{completion}}|{{a {} b}", concurrency=1)(
            ["p"] * 4, completions, solution=["{completion}", 2, [1, {"a": "ü"}], 0.5]
        )
    assert [question(body) for body in seen.bodies] == [
        completions[0] + "|{completion}|0-10|{completion}|{{a {} b}",
        "}{|2|0-10|{completion}|{{a {} b}",
        '{|[1, {"a": "ü"}]|0-10|{completion}|{{a {} b}',
        "%s|0.5|0-10|{completion}|{{a {} b}",
    ]


def test_an_unknown_name_is_an_error_before_anything_is_sent():
    with serving(says("1")) as seen:
        with pytest.raises(ValueError, match=r"judge: template has \{answer\}.*There is: .*prompt, solution"):
            judge(seen, template="{answer} {prompt}")(["p"], ["c"], solution=["s"])
    assert not seen.bodies


@pytest.mark.parametrize("text", ["{x.__class__}", "{prompt[0]}", "{prompt!r}", "{prompt:>9}", "a {solution .b} c"])
def test_a_name_that_is_looked_into_is_refused(text):
    with pytest.raises(ValueError, match=r"only a plain \{name\} stands for a value"):
        get_reward("judge", model="m", template=text)
    doubled = text.replace("{", "{{").replace("}", "}}")
    assert Template("judge", doubled).fill({}) == text


def test_prompts_as_text():
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    content = [{"type": "image"}, {"type": "text", "text": "c"}, {"type": "text", "text": "d"}]
    found = [prompt_text(value) for value in ("p", chat[:1], chat, [{"role": "user", "content": content}], None)]
    assert found == ["p", "a", "user: a\n\nassistant: b", "c\nd", None]


def test_rows_that_are_not_judged_are_none_and_not_sent():
    with serving(says("5")) as seen:
        reward = judge(seen, template="{completion} {solution}")
        assert reward(["p"] * 4, ["c", "c", None, object()], solution=["s", None, "s", "s"]) == [5.0, None, None, None]
    assert len(seen.bodies) == 1


def pixels_of(part):
    assert part["type"] == "image_url"
    kind, _, data = part["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_images_are_attached_the_drawn_one_last():
    arrays = [np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8) for seed in range(3)]
    first, second, third = map(Image.fromarray, arrays)
    with serving(says("3")) as seen:
        judge(seen, concurrency=1)(["p"] * 4, [third, "c", third, "c"], images=[None, [first, second], [first], []])
    contents = [body["messages"][0]["content"] for body in seen.bodies]
    for content, shown in zip(contents[:3], ([2], [0, 1], [0, 2]), strict=True):
        assert len(content) == len(shown) + 1 and content[-1]["type"] == "text"
        assert all(np.array_equal(pixels_of(part), arrays[index]) for part, index in zip(content, shown, strict=False))
    assert "Response:\n(the last attached image)\n" in contents[0][-1]["text"]
    assert "Response:\nc\n" in contents[1][-1]["text"]
    assert isinstance(contents[3], str)


def test_a_broken_image_costs_its_row_only():
    metrics = {}
    with serving(says("3")) as seen, pytest.warns(UserWarning, match="'images' cannot be encoded.*truncated"):
        assert judge(seen)(["p"] * 2, [Broken(), "c"], log_metric=metrics.__setitem__) == [None, 3.0]
    assert len(seen.bodies) == 1 and metrics["judge/failed"] == 1 and metrics["judge/unparsable"] == 0


@pytest.mark.parametrize(
    ("expected", "texts"),
    [
        (7.0, ["7", "I give it a 7.", "7/10", "**7** / 10", "7 out of 10."]),
        (7.5, [" 7.5\n"]),
        (8.0, ["**8**", "between 7-8"]),
        (9.0, ["\\boxed{9}"]),
        (4.0, ["First 3, then 4"]),
        (10.0, ["10/10"]),
        (0.0, ["0"]),
        (0.5, [".5"]),
        (6.0, ["<think>maybe 2 or 3</think>6"]),
        (2.0, ["<think>maybe 2"]),
        (None, ["", "good", "<think>4</think>good", "GPT4", "11", "-1", "7/100", "2024", "nan", "inf", None]),
    ],
)
def test_the_last_number_of_an_answer(expected, texts):
    assert {text: score(text) for text in texts} == dict.fromkeys(texts, expected)


def test_patterns_and_scales():
    for text, pattern, expected in (
        ("Score: 3. Confidence: 9", r"Score: (\d+)", 3.0),
        ("Score: 3, no, Score: 4. 9", r"Score: (\d+)", 4.0),
        ("9", r"Score: (\d+)", None),
        ("Score: x", r"Score: (\w)", None),
        ("Score: nan", r"Score: (\w+)", None),
    ):
        assert score(text, pattern=pattern) == expected, text
    for text, scale, expected in (("-0.5", [-1, 1], -0.5), ("4/5", (1, 5), 4.0), ("0", (1, 5), None)):
        assert score(text, scale=scale) == expected, text
    with serving(says("0")) as seen:
        judge(seen, scale=(-1, 0.5), template="{low} to {high}: {completion}")(["p"], ["c"])
    assert question(seen.bodies[0]) == "-1 to 0.5: c"


def test_answers_without_a_score_are_counted():
    metrics = {}
    with serving(in_turn(says("good"), says("4"), says("3", "length"), says(None))) as seen:
        scores = judge(seen, concurrency=1, cache=0)(["p"] * 4, ["c"] * 4, log_metric=metrics.__setitem__)
    assert scores == [None, 4.0, None, None]
    assert metrics["judge/unparsable"] == 3 and metrics["judge/failed"] == 0


def bad(exchange):
    if "bad" in question(exchange.body):
        return exchange.json({"error": {"message": "context too long"}}, 400)
    if "flaky" in question(exchange.body) and exchange.number < 3:
        return exchange.json("busy", 503)
    echo(exchange)


ROWS = ["worth 1", "bad", "worth 3", "flaky worth 4"]


def test_a_passing_failure_costs_nothing_and_another_raises():
    metrics = {}
    with serving(bad) as seen:
        reward = judge(seen, concurrency=4)
        assert reward(["p"] * 3, [ROWS[i] for i in (0, 2, 3)], log_metric=metrics.__setitem__) == [1.0, 3.0, 4.0]
        assert len(seen.bodies) == 3 + metrics["judge/retries"] and metrics["judge/failed"] == 0
        with pytest.raises(RewardServiceError) as error:
            reward(["p"] * 4, ROWS)
    assert f"judge: POST {seen.url}/v1/chat/completions: status 400 Bad Request" in str(error.value)
    assert "context too long" in str(error.value)


def test_a_row_that_hangs_is_bounded():
    def one_hangs(exchange):
        exchange.hang() if "bad" in question(exchange.body) else echo(exchange)

    with serving(one_hangs) as seen, pytest.raises(RewardServiceError, match=r"no complete answer within 0\.3 s"):
        began = time.monotonic()
        judge(seen, timeout=0.3, retries=1)(["p"] * 3, ["worth 1", "bad", "worth 3"])
    assert 0.6 <= time.monotonic() - began < 20


@pytest.mark.parametrize(
    "answer",
    [{}, [], {"choices": []}, {"choices": [{}]}, {"choices": ["7"]}, {"choices": [{"message": {"content": 7}}]}, "7"],
)
def test_what_is_no_chat_completion_is_an_error(answer):
    with serving(lambda exchange: exchange.json(answer)) as seen, pytest.raises(RewardServiceError) as error:
        judge(seen)(["p"], ["c"])
    said = str(error.value)
    assert f"no chat completion: {json.dumps(answer)!r}" in said and "up to and with /v1" in said
    assert len(seen.bodies) == 1


def test_the_key_is_openais_by_default_and_shows_nowhere(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-7KEY")
    with serving(says("1")) as seen:
        reward = judge(seen)
        reward(["p"], ["c"])
        judge(seen, api_key_env=None)(["p"], ["c"])
    assert [headers.get("Authorization") for headers in seen.headers] == ["Bearer sk-7KEY", None]
    assert b"sk-7KEY" not in pickle.dumps(reward) and "sk-7KEY" not in repr(reward)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"model": ""}, "model must be the name"),
        ({"model": None}, "model must be the name"),
        ({"base_url": "localhost:8000"}, "base_url must be a URL such as 'http://127.0.0.1:8000/v1'"),
        ({"base_url": "http://h/v1?key=1"}, "base_url must be a URL without a query, got 'http://h/v1?...'"),
        ({"base_url": "http://me:hunter2@host/v1"}, "without a user and a password"),
        ({"template": ""}, "template must be a text such as"),
        ({"template": None}, "template must be a text such as"),
        ({"pattern": r"\d+"}, "pattern must be a regular expression with one group"),
        ({"pattern": r"(\d)(\d)"}, "pattern must be a regular expression with one group"),
        ({"pattern": "("}, "pattern must be"),
        ({"pattern": 5}, "pattern must be"),
        ({"scale": [0]}, "scale must be two numbers"),
        ({"scale": [5, 5]}, "scale must be two numbers"),
        ({"scale": 10}, "scale must be two numbers"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"temperature": -1}, "temperature must be"),
        ({"system": 5}, "system must be"),
        ({"extra_body": {"messages": []}}, "extra_body must be a dict without the fields"),
        ({"extra_body": {"x": {1}}}, "extra_body must be JSON"),
        ({"timeout": "fast"}, "timeout must be seconds above 0"),
    ],
)
def test_arguments_are_checked(arguments, part):
    with pytest.raises(ValueError, match=f"judge: .*{re.escape(part)}") as error:
        get_reward("judge", **{"model": "m", **arguments})
    assert "hunter2" not in str(error.value)
