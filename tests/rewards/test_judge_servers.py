"""``judge`` asks a real server with real, tiny models."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack

import numpy as np
import pytest
from PIL import Image

from unigrpo.rewards import get_reward
from unigrpo.rewards._exchange import RewardServiceError

from ..support.processes import free_port
from ..support.servers import no_proxy  # noqa: F401


LONGEST = 40
MISSING = [name for name in ("fastapi", "uvicorn", "openai", "pydantic") if importlib.util.find_spec(name) is None]
served = pytest.mark.skipif(
    bool(MISSING), reason=f"`transformers serve` needs {', '.join(MISSING)}: pip install fastapi uvicorn openai"
)


@pytest.fixture
def transformers_serve(tmp_path):
    """A function that serves a folder by `transformers serve` and gives the base URL."""
    with ExitStack() as running:

        def serve(folder):
            port, log = free_port(), tmp_path / "serve.log"
            start = "from transformers.cli.transformers import main; main()"
            command = [sys.executable, "-c", start, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            out = running.enter_context(log.open("w"))
            process = subprocess.Popen([*command, "--device", "cpu"], stdout=out, stderr=out, env=environment)
            running.callback(process.wait)
            running.callback(process.kill)
            end = time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                    return f"http://127.0.0.1:{port}/v1"
                except OSError:
                    assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
                    time.sleep(0.2)

        yield serve


@pytest.fixture
def texts_read(monkeypatch):
    """The texts that the reward read a score from, in the order of arrival."""
    from unigrpo.rewards import _judge

    texts, read = [], _judge.JudgeReward._parts
    monkeypatch.setattr(_judge.JudgeReward, "_parts", lambda own, reply: texts.append(reply.text) or read(own, reply))
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
    rows = [("1 + 1?", "2", "2"), ("Name a {colour}.", "blue", "red"), ("Why?", "ü <|x|>", "so")]
    prompts, completions, solutions = map(list, zip(*rows, strict=True))

    def answers(model):
        for prompt, completion, solution in rows:
            text = f"{prompt}\n{completion} or {solution}, 0 to 1e+300: "
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

    def judged(**changes):
        metrics = {}
        reward = get_reward("judge", **{**arguments, **changes})
        return reward(prompts, completions, solution=solutions, log_metric=metrics.__setitem__), metrics

    scores, metrics = judged()
    assert sorted(texts_read) == sorted(texts)
    assert scores == [float(re.findall(r"\d+", text)[-1]) for text in texts]
    assert metrics["judge/failed"] == metrics["judge/retries"] == metrics["judge/unparsable"] == 0
    # The digit at which the model stops, through a pattern; and an answer of one token is cut.
    last, _ = judged(pattern=r"(\d)$")
    assert last == [float(text[-1]) for text in texts] and set(last) <= {7.0, 8.0, 9.0}
    assert judged(max_tokens=1)[0] == [None, None, None]
    # The server's own refusal: a field that it does not take.
    with pytest.raises(RewardServiceError, match=r"status 422 .*no_such_field"):
        judged(extra_body={"no_such_field": 1})


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
    folder = tmp_path / "judge"
    for part in (model, processor):
        part.save_pretrained(folder)
    options = {"template": "p {completion}:", "scale": (0, 1e300), "max_tokens": LONGEST}
    reward = get_reward("judge", model=str(folder), base_url=transformers_serve(folder), **options)
    scores = reward(["p"] * 3, [first, "c", first], images=[None, [second], [third]])
    assert sorted(texts_read) == sorted(texts)
    assert scores == [float(re.findall(r"\d+", text)[-1]) for text in texts]
