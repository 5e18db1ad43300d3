"""``remote``: what is sent, what may come back, and what it is called with. How long: `test_remote_bounds`."""

from __future__ import annotations

import base64
import io
import logging
import multiprocessing
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from unigrpo.errors import RecipeError, RewardError
from unigrpo.rewards import get_reward
from unigrpo.rollout.rewards import RewardSet
from unigrpo.runs.build import build_rewards

from ..support import ROOT
from ..support.answers import answers
from ..support.processes import free_port
from ..support.recipes import recipe
from ..support.servers import failure, hangs, in_turn, lengths, no_proxy, remote, says, serving  # noqa: F401
from ..support.tiny_scorers import Broken


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
        assert remote(seen)([], []) == []
    assert scores == [1.0, -0.5, None] and [type(score) for score in scores[:2]] == [float, float]
    (body,) = seen.bodies
    assert body == {
        "prompts": ["a", [{"role": "user", "content": "b"}], "c"],
        "completions": ["x", "y", "z"],
        "task": ["text", "mmu", None],
        "solution": [0.5, {"k": [1, None]}, [0, 1]],
    }
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


def test_a_row_with_a_broken_image_is_left_out_and_counted():
    metrics = {}
    with serving(says({"rewards": [1, 3]})) as seen, pytest.warns(UserWarning, match="cannot be encoded"):
        scores = remote(seen)(["a", "b", "c"], ["x", Broken(), "z"], log_metric=metrics.__setitem__, k=[1, 2, 3])
    assert scores == [1.0, None, 3.0] and metrics["remote/failed"] == 1
    assert seen.bodies[0]["prompts"] == ["a", "c"] and seen.bodies[0]["k"] == [1, 3]


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


def test_logs_have_no_query(caplog):
    caplog.set_level(logging.DEBUG)
    with serving(lengths) as seen:
        remote(f"{seen.url}/score?token=hunter2", api_key_env=None)(["p"], ["c"])
    assert f"POST {seen.url}/score " in caplog.text and "hunter2" not in caplog.text


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
    assert [part for part in (f"{seen.url}/score", "status 200", *parts) if part not in said] == []
    assert len(said) < 900


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status):
    with serving(lengths) as other:
        with serving(says("", status, Location=f"{other.url}/x?key=secret")) as seen:
            said = failure(remote(seen))
            assert f"status {status} " in said and f"a redirect to '{other.url}/x'" in said and "final URL" in said
            assert "secret" not in said
        with serving(says("", status, Location="/score")) as loop:
            assert "a redirect to '/score'" in failure(remote(loop))
        with serving(says("", status)) as nowhere:
            assert f"status {status} " in failure(remote(nowhere))
        assert len(seen.bodies) == len(loop.bodies) == 1 and not other.bodies


def test_nobody_there():
    port = free_port()
    said = failure(remote(f"http://127.0.0.1:{port}/score?token=secret", retries=2))
    assert f"POST http://127.0.0.1:{port}/score: the connection failed (ConnectionRefusedError" in said
    assert "(3 attempts). Check that the service runs there" in said and "secret" not in said


def test_what_a_failure_costs_is_for_the_run_to_say():
    with serving(says("no", 400)) as seen, serving(lengths) as well:
        rewards = [remote(seen), remote(well, label="well")]
        with pytest.raises(RewardError, match=r"'remote' raised RewardServiceError: .*status 400"):
            RewardSet(rewards).score(answers(2))
        with pytest.warns(UserWarning, match=r"'remote' raised RewardServiceError: .*status 400"):
            found = RewardSet(rewards, on_error="none", timeout=30.0).score(answers(2))
    assert found.values[:, 0].isnan().all() and found.values[:, 1].tolist() == [8.0, 8.0]
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


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("url", "ftp://host/x", "url must be a URL such as 'http"),
        ("url", "file:///etc/passwd", "got 'file:///etc/passwd'"),
        ("url", "127.0.0.1:8000", "url must be"),
        ("url", "http:///x", "url must be"),
        ("url", "http://h:99999/", "url must be"),
        ("url", "http://h/a b", "url must be"),
        ("url", "http://h/\r\nX-Evil: 1", "url must be"),
        ("url", "http://h/#part", "url must be"),
        ("url", 8000, "got 8000"),
        ("url", "http://me:hunter2@host/", "environment variable"),
        ("api_key_env", "hf_hunter2", "environment variable"),
        ("api_key_env", "sk-hunter2", "environment variable"),
        ("timeout", 0, "timeout must be seconds above 0 and at most 1e6, such as 30.0, got 0"),
        ("timeout", True, "timeout must be"),
        ("timeout", float("inf"), "timeout must be"),
        ("deadline", -1, "deadline must be"),
        ("deadline", 1e9, "deadline must be"),
        ("backoff", -0.1, "backoff must be"),
        ("backoff", float("nan"), "backoff must be"),
        ("retries", 1.5, "retries must be a whole number, 0 or more, got 1.5"),
        ("concurrency", 0, "concurrency must be a whole number from 1 to 256"),
        ("batch_size", 0, "batch_size must be"),
        (
            "columns",
            "solution",
            "columns must be a list of column names such as ['solution'], or None, got 'solution'",
        ),
        ("label", "a b", "label must be"),
        ("label", "", "label must be"),
    ],
)
def test_arguments_are_checked_and_what_may_be_a_secret_is_not_repeated(name, value, part):
    with pytest.raises(ValueError, match=re.escape(part)) as error:
        get_reward("remote", **{"url": "http://127.0.0.1:1/", name: value})
    assert "hunter2" not in str(error.value)


def test_two_remotes_have_two_names():
    with serving(lengths) as seen:
        rewards = RewardSet([remote(seen), remote(seen, label="style"), remote(seen)])
        assert rewards.names == ["remote", "style", "remote_2"]
        found = rewards.score(answers(1, solution=["s"]))
    assert found.values.tolist() == [[8.0] * 3]
    assert {"style/failed", "style/retries", "style/seconds", "remote/failed"} <= set(found.metrics)
    body = {"prompts": ["question 0"], "completions": ["answer 0"], "task": ["text"], "solution": ["s"]}
    assert seen.bodies == [body] * 3


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
        rewards = RewardSet(build_rewards(recipe(tmp_path, RECIPE.replace("URL", seen.url))))
        assert rewards.names == ["judge", "remote"]
        assert rewards.score(answers(1, solution=[1])).values.tolist() == [[4.0, 0.5]]
    with pytest.raises(RecipeError, match=r"args of 'judge': .*'model'"):
        build_rewards(recipe(tmp_path, RECIPE.replace("model: m, ", "")))


def test_a_reward_can_be_copied_and_forked():
    with serving(lengths) as seen:
        reward = remote(seen)
        assert reward(["p"], ["one"]) == [3.0]
        assert pickle.loads(pickle.dumps(reward))(["p"], ["one"]) == [3.0]
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(reward, (["p"], ["four"])) == [4.0]
    assert len(seen.bodies) == 3


def test_the_example_is_such_a_service():
    command = [sys.executable, str(ROOT / "examples" / "reward_server.py"), "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        reward = remote(process.stdout.readline().split()[-1])
        completions = ["it is 7", "it is 8", "it is 9", Image.new("RGB", (8, 8), "red")]
        scores = reward(["p"] * 4, completions, solution=[7, 7, None, None], task=["x"] * 4)
        assert scores[:3] == [1.0, 0.0, None] and 0 < scores[3] < 1
    finally:
        process.kill()
        process.wait()
