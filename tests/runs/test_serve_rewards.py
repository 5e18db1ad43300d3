"""`unigrpo serve-rewards`: what a run gets from it is what it gets from the rewards themselves; who may ask, and how much."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import socket

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from unigrpo.errors import RecipeError
from unigrpo.rewards import get_reward
from unigrpo.rollout.rewards import RewardSet
from unigrpo.runs import cli
from unigrpo.runs.serve_rewards.app import build_app
from unigrpo.runs.serve_rewards.cli import read_token
from unigrpo.runs.serve_rewards.scorer import Scorer
from unigrpo.runs.serve_rewards.served import load_served, served_rewards

from ..support.answers import answers, sample
from ..support.reward_servers import GOOD, graded, posted, reward_server
from ..support.servers import failure, no_proxy, remote  # noqa: F401


def columns_of(prompts, completions, images, task, completion_ids, thoughts=None, **columns):
    """A digest of everything that a reward may read."""
    seen = []
    for row, completion in enumerate(completions):
        pictures = [np.asarray(own).sum() for own in images[row] or []]
        own = np.asarray(completion).sum() if isinstance(completion, Image.Image) else len(str(completion))
        others = [str(values[row]) for name, values in sorted(columns.items()) if isinstance(values, list)]
        seen.append(
            f"{prompts[row]} {own} {pictures} {task[row]} {completion_ids[row]} {thoughts and thoughts[row]} {others}"
        )
    return [float(sum(map(ord, text))) for text in seen]


def picture(seed, size=(9, 8)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def rows():
    """Answers of every kind: a chat, a question about a picture, a drawing, further columns."""
    chat = [{"role": "user", "content": "hi"}]
    return [
        sample({"prompt": "a", "solution": 1, "k": {"x": [1, None]}}, "one", [1, 2], index=0),
        sample({"prompt": chat, "solution": None, "k": 0.5}, "two", [], index=1),
        sample({"prompt": "what?", "solution": 3, "k": None}, "three", [7], "mmu", images=[picture(1)], index=2),
        sample({"prompt": "draw", "solution": 4, "k": "é"}, picture(2), [5], "t2i", index=3),
    ]


@pytest.mark.smoke
def test_a_run_gets_from_the_server_what_it_gets_from_the_reward():
    texts = [own for own in rows() if own.task == "text"]
    with reward_server({"graded": graded, "columns_of": columns_of}) as url:
        for function, given in ((graded, texts), (columns_of, rows())):
            columns = ["k", "solution", "completion_ids"]
            own = remote(f"{url}/score/{function.__name__}", columns=columns, batch_size=3)
            here, there = RewardSet([function]).score(given), RewardSet([own]).score(given)
            assert there.values.nan_to_num(-1).tolist() == here.values.nan_to_num(-1).tolist()
            assert there.extras == here.extras
            served = {name: value for name, value in there.metrics.items() if name.startswith("graded")}
            assert served == here.metrics
    assert here.values.unique().numel() == 4, "the digest tells the rows apart"


def test_metrics_of_batches_are_those_of_one_call():
    names = ("graded/failed", "graded/mean_length")
    found = {}
    with reward_server({"graded": graded}) as url:
        given = [sample({"prompt": f"{length}", "solution": 0}, "x" * length, index=length) for length in range(5)]
        scores = RewardSet([remote(f"{url}/score", batch_size=2, label="graded")]).score(given)
        found = {name: scores.metrics[name] for name in names}
    assert found == {"graded/failed": [3.0], "graded/mean_length": [2.0]}
    assert scores.values[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0] and scores.extras["length"] == [0, 1, 2, 3, 4]


def png(data):
    return {"type": "image", "png": base64.b64encode(data).decode()}


def file_of(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, format=kind)
    return file.getvalue()


HUGE = bytearray(file_of(picture(0)))
HUGE[16:24] = (60_000).to_bytes(4, "big") * 2


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "the request is no JSON"),
        (b"[" * 60_000, 400, "the request is no JSON"),
        (b'{"prompts": [NaN]}', 400, "NaN is not JSON"),
        (b"\xff\xfe", 400, "the request is no JSON"),
        ([1], 400, "must be an object of lists"),
        ({"prompts": ["p"]}, 400, "needs 'completions', a list with one item a row"),
        ({"prompts": "p", "completions": ["c"]}, 400, "needs 'prompts'"),
        ({**GOOD, "solution": [1, 2]}, 400, "'solution' must be a list of 1 items"),
        ({**GOOD, "prompts": [3]}, 400, "prompts, row 0: a prompt is a text or a list of messages, not 3"),
        ({**GOOD, "completions": [None]}, 400, "completions, row 0: a completion is a text or an image, not None"),
        ({**GOOD, "completions": [png(b"GIF89a")]}, 400, "completions, row 0: an image is no PNG file"),
        ({**GOOD, "completions": [png(file_of(picture(0))[:60])]}, 400, "completions, row 0"),
        ({**GOOD, "completions": [{"type": "image", "png": "?"}]}, 400, "an image is no base64"),
        ({**GOOD, "completions": [{"type": "image", "png": 3}]}, 400, "an image is {"),
        ({**GOOD, "completions": [png(bytes(HUGE))]}, 413, "536870912 pixels in all"),
        ({**GOOD, "images": [["x"]]}, 400, "images, row 0"),
        ({**GOOD, "task": ["txt"]}, 400, "task, row 0: 'txt' is none of text"),
        ({**GOOD, "completion_ids": [["1"]]}, 400, "completion_ids, row 0"),
        ({name: own * 5 for name, own in GOOD.items()}, 413, "5 rows, and at most 4 are taken: set batch_size"),
        (b'{"prompts": "' + b"x" * 70_000 + b'"}', 413, "at most 65536 are taken: set batch_size"),
        ({"prompts": ["p"], "completions": ["c"]}, 422, "it takes 'solution', which is neither a column"),
        (json.dumps(GOOD).replace("[0]", "[" * 900 + "]" * 900).encode(), 400, "nests lists and objects too deep"),
        ({**GOOD, "solution": ["x"]}, 422, "reward 'graded' raised TypeError"),
    ],
)
def test_a_request_that_is_none_gets_one_sentence(served, body, status, said):
    code, sentence, _ = posted(f"{served}/score/graded", body)
    assert code == status and said in sentence and "\n" not in sentence and len(sentence) < 900


@pytest.fixture(scope="module")
def served():
    def broken(completions, **_):
        return [math.nan] * len(completions)

    def down(completions, **_):
        raise ConnectionError("no card")

    def lacking(completions, **_):
        raise ImportError("no module")

    functions = {"graded": graded, "broken": broken, "down": down, "lacking": lacking}
    with reward_server(functions, max_rows=4, max_bytes=65536) as url:
        yield url


def test_faults_of_rewards_are_no_scores(served, capsys):
    """A NaN is no null and no zero; what may pass is asked for again."""
    assert "returned nan, which is no finite number" in failure(
        remote(f"{served}/score/broken", retries=5), solution=[0, 0]
    )
    assert "(1 attempt)" in failure(remote(f"{served}/score/broken", retries=5))
    assert "raised ConnectionError: no card" in failure(remote(f"{served}/score/down", retries=2))
    assert "(3 attempts)" in failure(remote(f"{served}/score/down", retries=2))
    assert "raised ImportError: no module" in failure(remote(f"{served}/score/lacking", retries=2))
    capsys.readouterr()
    assert "(1 attempt)" in failure(remote(f"{served}/score/lacking", retries=2))
    told = capsys.readouterr().out
    assert told.startswith("lacking: reward 'lacking' raised ImportError: no module") and told.count("\n") == 1


def test_other_places_are_named(served):
    assert posted(f"{served}/score/grade", GOOD)[:2] == (
        404,
        "reward='grade' is not valid: did you mean 'graded'? choose one of ['graded', 'broken', 'down', 'lacking']",
    )
    assert (
        "post to one of /score/graded, /score/broken, /score/down, /score/lacking"
        in posted(f"{served}/score", GOOD)[1]
    )
    assert posted(f"{served}/scores", GOOD)[0] == 404 and "POST to /score" in posted(f"{served}/scores", GOOD)[1]
    assert httpx.get(f"{served}/score/graded", trust_env=False).status_code == 405
    assert posted(f"{served}/score/graded", GOOD, **{"Content-Type": "text/plain"})[0] == 415


def test_the_columns_of_one_run_are_not_those_of_another(served):
    """Two runs on one server: the second one's missing column is a mistake, and not None for all of its rows."""
    assert posted(f"{served}/score/graded", GOOD)[0] == 200
    assert posted(f"{served}/score/graded", {"prompts": ["p"], "completions": ["c"]})[0] == 422


def test_only_who_has_the_token_may_ask(monkeypatch):
    with reward_server({"graded": graded}, token="t0ken") as url:
        monkeypatch.setenv("REWARD_TOKEN", "t0ken")
        asked = remote(f"{url}/score", api_key_env="REWARD_TOKEN", columns=["solution"])
        assert asked(["p"], ["four"], solution=[0]) == [4.0]
        for headers in ({}, {"Authorization": "Bearer t0ke"}, {"Authorization": "t0ken"}):
            assert posted(f"{url}/score", GOOD, **headers)[:2] == (
                401,
                "the token is missing or wrong: send `Authorization: Bearer TOKEN` (api_key_env of `remote`)",
            )
            assert httpx.get(f"{url}/metrics", headers=headers, trust_env=False).status_code == 401
        assert httpx.get(f"{url}/health", trust_env=False).json() == {"status": "ok", "rewards": ["graded"], "held": 0}


def test_without_a_token_other_names_than_this_machines_are_refused():
    """A page whose name was made to lead here asks under that name."""
    with reward_server({"graded": graded}) as url:
        for headers in ({"Host": "evil.org"}, {"Host": "["}, {"Origin": "http://evil.org"}, {"Origin": "null"}):
            status, said, _ = posted(f"{url}/score", GOOD, **headers)
            assert status == 403 and said.startswith(f"the header {next(iter(headers))} names another machine")
            assert httpx.get(f"{url}/metrics", headers=headers, trust_env=False).status_code == 403
        for headers in ({"Host": "[::1]:80"}, {"Host": "localhost", "Origin": "http://127.0.0.1:3000"}):
            assert posted(f"{url}/score", GOOD, **headers)[0] == 200
    with reward_server({"graded": graded}, token="t0ken") as url:
        assert posted(f"{url}/score", GOOD, Host="a.org", Authorization="Bearer t0ken")[0] == 200


def test_only_rewards_that_are_there_are_counted():
    scorer = Scorer({"graded": graded})
    client = TestClient(build_app(scorer), base_url="http://localhost")
    assert client.post("/score/other", json=GOOD).status_code == 404 and not scorer.counts
    assert client.post("/score/graded", json=[1]).status_code == 400


def test_a_token_is_needed_where_others_can_ask(monkeypatch):
    monkeypatch.delenv("MY_TOKEN", raising=False)
    assert read_token("MY_TOKEN", "127.0.0.1") == read_token("MY_TOKEN", "::1") == ""
    with pytest.raises(ValueError, match=r"--host 0.0.0.0 lets other machines ask: put a token into .* MY_TOKEN"):
        read_token("MY_TOKEN", "0.0.0.0")
    monkeypatch.setenv("MY_TOKEN", "a b")
    with pytest.raises(ValueError, match="MY_TOKEN holds characters that no token has") as error:
        read_token("MY_TOKEN", "127.0.0.1")
    assert "a b" not in str(error.value)
    monkeypatch.setenv("MY_TOKEN", "secret")
    assert read_token("MY_TOKEN", "0.0.0.0") == "secret"


def test_async_rewards_and_those_for_a_task_are_served(tmp_path):
    (tmp_path / "my_served.py").write_text(
        "import asyncio\n\n\nasync def later(completions, **_):\n    await asyncio.sleep(0)\n    return [float(len(own)) for own in completions]\n"
    )
    file = tmp_path / "served.yaml"
    file.write_text(
        'rewards: [{name: "my_served:later", task: t2i}, {name: "my_served:later"}, {name: jpeg_size}]\nreward_timeout: 5\n'
    )
    functions = served_rewards(load_served(file, ["rewards.2.args.quality=50"]))
    assert list(functions) == ["later", "later_2", "jpeg_size"]
    with reward_server(functions) as url:
        assert remote(f"{url}/score/later")(["p"], ["four"], task=["text"]) == [None]
        assert remote(f"{url}/score/later_2")(["p"], ["four"], task=["text"]) == [4.0]
        drawn = picture(3, (64, 64))
        (there,) = remote(f"{url}/score/jpeg_size")(["p"], [drawn], task=["t2i"])
    (here,) = get_reward("jpeg_size", quality=50)(["p"], [drawn])
    assert there == pytest.approx(here, rel=1e-6)
    assert asyncio.run(functions["later_2"](completions=["ab"])) == [2.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("datasets: []", "'rewards' is missing: a server needs a list of them"),
        ("rewards: [{name: jpeg_size}]\nreward_time: 5", "did you mean 'reward_timeout'"),
        ("rewards: [{name: jpeg_size}]\nreward_timeout: -5", "reward_timeout=-5 must be a positive number"),
        ("rewards: [{name: jpeg_size, task: txt}]", "task='txt': choose one of"),
        ("rewards: [{name: jpeg_syze}]", "Did you mean 'jpeg_size'"),
    ],
)
def test_what_cannot_be_served_is_said_before(tmp_path, text, said, capsys):
    (tmp_path / "served.yaml").write_text(text + "\n")
    assert cli.main(["serve-rewards", str(tmp_path / "served.yaml"), "--port", "0"]) == 2
    assert said in capsys.readouterr().err
    with pytest.raises(RecipeError):
        served_rewards(load_served(tmp_path / "served.yaml", []))


def test_what_cannot_be_listened_on_is_said(capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve-rewards", "quickstart", "--port", str(port)]) == 2
    assert f"--port {port} cannot be listened on" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["serve-rewards", "quickstart"]) == 2
    assert "pip install 'unigrpo[serve]'" in capsys.readouterr().err


def test_answers_are_json_whatever_a_reward_logs():
    def odd(completions, log_extra, log_metric, **_):
        log_extra("odd", [math.inf, 1.0])
        log_extra("other", [{"a": 1}, None])
        log_metric("odd/mean", 0.5)
        return [1.0, None]

    with reward_server({"odd": odd}) as url:
        found = RewardSet([remote(f"{url}/score")]).score(answers(2))
        # As a fault of the log alone is told here, so it is there: the scores of an answer stand by themselves.
        assert found.values[:, 0].nan_to_num(-1).tolist() == [1.0, -1.0] and found.metrics["odd/mean"] == [0.5]
        assert found.extras == {"odd": [None, 1.0], "other": ["{'a': 1}", None]}
