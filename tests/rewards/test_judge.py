"""``judge``: the question, the images, the number, failing rows; then a real server with real, tiny models."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from unigrpo.rewards import get_reward
from unigrpo.rewards._exchange import RewardServiceError
from unigrpo.rewards._template import Template, prompt_text

from ..support.servers import in_turn, serving


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def judge(seen, **arguments):
    return get_reward(
        "judge", **{"model": "m", "base_url": f"{seen.url}/v1", "backoff": 0.0, "timeout": 30.0, **arguments}
    )


def completion(text, finish_reason="stop"):
    message = {"role": "assistant", "content": text}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}


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
    (body,) = seen.bodies
    assert {key: value for key, value in body.items() if key != "messages"} == {
        "model": "m",
        "max_tokens": 9,
        "temperature": 0.0,
        "seed": 3,
    }
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be {fair}."}
    assert user["role"] == "user" and user["content"] == (
        "How good is the response to the prompt? Give it a number from 0, the worst, to 10, the best.\n\n"
        "Prompt:\nWhat is 1 + 1?\n\nResponse:\n2\n\nReply with the number alone."
    )
    assert seen.paths == ["/v1/chat/completions"]
    assert "Authorization" not in seen.headers[0]
    assert metrics.keys() == {"judge/failed", "judge/retries", "judge/seconds", "judge/unparsable"}
    assert metrics["judge/failed"] == metrics["judge/retries"] == metrics["judge/unparsable"] == 0
    with serving(says("7")) as seen:
        judge(seen, base_url=f"{seen.url}/v1/", max_tokens=None, temperature=None)(["p"], ["c"])
    assert seen.bodies[0].keys() == {"model", "messages"} and seen.paths == ["/v1/chat/completions"]


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
    parts = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "c"}, {"type": "text", "text": "d"}]}
    ]
    assert [prompt_text(value) for value in ("p", chat[:1], chat, parts, None)] == [
        "p",
        "a",
        "user: a\n\nassistant: b",
        "c\nd",
        None,
    ]


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
    class Broken(Image.Image):
        mode = "RGB"

        def save(self, *_, **__):
            raise OSError("truncated")

    metrics = {}
    with serving(says("3")) as seen, pytest.warns(UserWarning, match="'images' cannot be encoded.*truncated"):
        assert judge(seen)(["p"] * 2, [Broken(), "c"], log_metric=metrics.__setitem__) == [None, 3.0]
    assert len(seen.bodies) == 1 and metrics["judge/failed"] == 1 and metrics["judge/unparsable"] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7.0),
        (" 7.5\n", 7.5),
        ("I give it a 7.", 7.0),
        ("**8**", 8.0),
        ("\\boxed{9}", 9.0),
        ("First 3, then 4", 4.0),
        ("7/10", 7.0),
        ("**7** / 10", 7.0),
        ("7 out of 10.", 7.0),
        ("10/10", 10.0),
        ("0", 0.0),
        (".5", 0.5),
        ("between 7-8", 8.0),
        ("<think>maybe 2 or 3</think>6", 6.0),
        ("<think>maybe 2", 2.0),
        ("", None),
        ("good", None),
        ("<think>4</think>good", None),
        ("GPT4", None),
        ("11", None),
        ("-1", None),
        ("7/100", None),
        ("2024", None),
        ("nan", None),
        ("inf", None),
        (None, None),
    ],
)
def test_the_last_number_of_an_answer(text, expected):
    assert score(text) == expected


def test_patterns_and_scales():
    assert score("Score: 3. Confidence: 9", pattern=r"Score: (\d+)") == 3.0
    assert score("Score: 3, no, Score: 4. 9", pattern=r"Score: (\d+)") == 4.0
    assert score("9", pattern=r"Score: (\d+)") is None
    assert score("Score: x", pattern=r"Score: (\w)") is None
    assert score("Score: nan", pattern=r"Score: (\w+)") is None
    assert score("-0.5", scale=[-1, 1]) == -0.5
    assert score("4/5", scale=(1, 5)) == 4.0
    assert score("0", scale=(1, 5)) is None
    with serving(says("0")) as seen:
        judge(seen, scale=(-1, 0.5), template="{low} to {high}: {completion}")(["p"], ["c"])
    assert question(seen.bodies[0]) == "-1 to 0.5: c"


def test_a_cut_answer_is_no_score():
    assert score("I count 1, 2, 3", finish_reason="length") is None


def test_answers_without_a_score_are_counted():
    metrics = {}
    with serving(in_turn(says("good"), says("4"), says("3", "length"), says(None))) as seen:
        scores = judge(seen, concurrency=1)(["p"] * 4, ["c"] * 4, log_metric=metrics.__setitem__)
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
    assert f"no chat completion: {json.dumps(answer)!r}" in str(error.value) and "up to and with /v1" in str(
        error.value
    )
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
    with pytest.raises(ValueError, match="judge: ") as error:
        get_reward("judge", **{"model": "m", **arguments})
    assert part in str(error.value)


def test_a_password_in_the_url_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match=r"base_url must be .* without a user and a password") as error:
        get_reward("judge", model="m", base_url="http://me:hunter2@host/v1")
    assert "hunter2" not in str(error.value)


LONGEST = 40
MISSING = [name for name in ("fastapi", "uvicorn", "openai", "pydantic") if importlib.util.find_spec(name) is None]
served = pytest.mark.skipif(
    bool(MISSING), reason=f"`transformers serve` needs {', '.join(MISSING)}: pip install fastapi uvicorn openai"
)


@pytest.fixture
def transformers_serve(tmp_path):
    """A function that serves a folder by `transformers serve` and gives the base URL."""
    processes = []

    def serve(folder):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        start = "from transformers.cli.transformers import main; main()"
        command = [sys.executable, "-c", start, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
        log = open(tmp_path / "serve.log", "w+")  # noqa: SIM115
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log, env=environment)
        processes.append((process, log))
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                return f"http://127.0.0.1:{port}/v1"
            except OSError:
                assert process.poll() is None and time.monotonic() < end, (tmp_path / "serve.log").read_text()[-3000:]
                time.sleep(0.2)

    yield serve
    for process, log in processes:
        process.kill()
        process.wait()
        log.close()


@pytest.fixture
def texts_read(monkeypatch):
    """The texts that the reward read a score from, in the order of arrival."""
    from unigrpo.rewards import _judge

    texts, content = [], _judge._content
    monkeypatch.setattr(_judge, "_content", lambda answer: texts.append(content(answer)) or texts[-1])
    return texts


def first_that_tells(candidates):
    """The first model with its answers, if all end, hold a number and differ.

    Where answers are alike, a mistake in roles, rows or images might not show.
    """
    for model, answers in candidates:
        texts = [text for text, ended in answers if ended and re.search(r"\d", text)]
        if len(set(texts)) == len(answers):
            return model, texts
    pytest.fail("no seed has answers that end and differ")


@pytest.mark.slow
@pytest.mark.timeout(300)
@served
def test_a_real_server_says_what_the_model_says(tmp_path, transformers_serve, texts_read):
    from ..support.tiny_judges import byte_tokenizer, chat_model, said_directly

    tokenizer = byte_tokenizer()
    prompts, completions, solutions = (
        ["1 + 1?", "Name a {colour}.", "Why?"],
        ["2", "blue", "ü <|x|>"],
        ["2", "red", "so"],
    )
    questions = [f"{p}\n{c} or {s}, 0 to 1e+300: " for p, c, s in zip(prompts, completions, solutions, strict=True)]

    def answers(model):
        for text in questions:
            messages = [{"role": "system", "content": "Count."}, {"role": "user", "content": text}]
            yield said_directly(model, tokenizer, messages, LONGEST)

    models = (chat_model(tokenizer, seed) for seed in range(200))
    model, texts = first_that_tells((model, list(answers(model))) for model in models)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "judge")
    arguments = {
        "model": str(tmp_path / "judge"),
        "base_url": transformers_serve(tmp_path / "judge"),
        "template": "{prompt}\n{completion} or {solution}, {low} to {high}: ",
        "system": "Count.",
        "scale": (0, 1e300),
        "max_tokens": LONGEST,
        "timeout": 60.0,
        "retries": 0,
    }
    metrics = {}
    scores = get_reward("judge", **arguments)(prompts, completions, solution=solutions, log_metric=metrics.__setitem__)
    assert sorted(texts_read) == sorted(texts)
    assert scores == [float(re.findall(r"\d+", text)[-1]) for text in texts]
    assert metrics["judge/failed"] == metrics["judge/retries"] == metrics["judge/unparsable"] == 0
    # The digit at which the model stops, through a pattern; and an answer of one token is cut.
    last = get_reward("judge", **arguments, pattern=r"(\d)$")(prompts, completions, solution=solutions)
    assert last == [float(text[-1]) for text in texts] and set(last) <= {7.0, 8.0, 9.0}
    cut = get_reward("judge", **arguments | {"max_tokens": 1})(prompts, completions, solution=solutions)
    assert cut == [None, None, None]
    # The server's own refusal: a field that it does not take.
    refused = get_reward("judge", **arguments, extra_body={"no_such_field": 1})
    with pytest.raises(RewardServiceError, match=r"status 422 .*no_such_field"):
        refused(prompts, completions, solution=solutions)


@pytest.mark.slow
@pytest.mark.timeout(300)
@served
def test_a_real_server_sees_what_the_model_sees(tmp_path, transformers_serve, texts_read):
    from ..support.tiny_judges import byte_tokenizer, said_directly, seeing_model

    tokenizer = byte_tokenizer()
    arrays = [np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8) for seed in range(3)]
    first, second, third = map(Image.fromarray, arrays)
    # A drawn image; an answer about an image; a drawn image for a prompt with one.
    rows = [([first], "(the last attached image)"), ([second], "c"), ([third, first], "(the last attached image)")]

    def answers(model, processor):
        for pictures, said in rows:
            parts = [{"type": "image", "image": picture} for picture in pictures]
            messages = [{"role": "user", "content": [*parts, {"type": "text", "text": f"p {said}:"}]}]
            yield said_directly(model, processor, messages, LONGEST)

    models = (seeing_model(tokenizer, seed) for seed in range(200))
    (model, processor), texts = first_that_tells((pair, list(answers(*pair))) for pair in models)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "judge")
    url = transformers_serve(tmp_path / "judge")
    reward = get_reward(
        "judge",
        model=str(tmp_path / "judge"),
        base_url=url,
        template="p {completion}:",
        scale=(0, 1e300),
        max_tokens=LONGEST,
    )
    scores = reward(["p"] * 3, [first, "c", first], images=[None, [second], [third]])
    assert sorted(texts_read) == sorted(texts)
    assert scores == [float(re.findall(r"\d+", text)[-1]) for text in texts]
