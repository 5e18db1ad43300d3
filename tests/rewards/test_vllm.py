"""Rewards that ask a server ask a real vLLM, and get what its models say when transformers runs them."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from unigrpo.data.pictures import to_pixels
from unigrpo.rewards import get_reward
from unigrpo.toy import shapes
from unigrpo.toy.making import yes_no

from ..support import tiny_judges
from ..support.processes import free_port
from ..support.servers import no_proxy  # noqa: F401
from ..support.vllm_servers import NEEDS_VLLM, vllm_serving


pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), NEEDS_VLLM]

WIDE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
"""Heads of 32, what vLLM's kernels for CPUs take."""


def ask(name, url, **arguments):
    """A reward, and a function that calls it and gives scores with metrics."""
    reward = get_reward(name, model="m", base_url=f"{url}/v1", timeout=300.0, **arguments)

    def call(prompts, completions, **columns):
        metrics = {}
        return reward(prompts, completions, log_metric=metrics.__setitem__, **columns), metrics

    return call


def test_a_judge(tmp_path, monkeypatch):
    """Text, probabilities, a schema and several questions."""
    monkeypatch.setattr(tiny_judges, "TEXT", tiny_judges.TEXT | WIDE)
    tokenizer = tiny_judges.byte_tokenizer()
    model = tiny_judges.chat_model(tokenizer, 3)
    # The token that ends an answer is no digit for vLLM, so it is for no one here.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "judge")
    prompts, completions = ["1 + 1?", "Name a colour.", "Why?"], ["2", "blue", "so"]
    template = "{prompt} {completion}: "
    logits = []
    for prompt, completion in zip(prompts, completions, strict=True):
        messages = [{"role": "user", "content": template.format(prompt=prompt, completion=completion)}]
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            logits.append(model(**ids).logits[0, -1])
    digits = torch.stack(logits)[:, tokenizer.convert_tokens_to_ids([*"0123456789"])]
    expected = (digits.softmax(1) @ torch.arange(10.0)).tolist()

    with vllm_serving(tmp_path / "judge", free_port(), tmp_path / "log", "--max-model-len", "512") as url:
        common = {"template": template, "scale": (0, 9)}
        one, metrics = ask(
            "judge", url, **common, max_tokens=1, extra_body={"structured_outputs": {"regex": "[0-9]"}}
        )(prompts, completions)
        assert one == [None] * 3 and metrics["judge/unparsable"] == 3, "cut at one token"
        guided = {"structured_outputs": {"regex": "[0-9]"}}
        plain, metrics = ask("judge", url, **common, max_tokens=2, extra_body=guided)(prompts, completions)
        assert plain == digits.argmax(1).float().tolist() and metrics["judge/completion_tokens"] >= 3
        soft, _ = ask("judge", url, **common, max_tokens=2, extra_body=guided, logprobs=True)(prompts, completions)
        assert soft == pytest.approx(expected, abs=1e-3)

        schema, _ = ask("judge", url, scale=(2, 5), template=template, structured=True, max_tokens=40)(
            prompts, completions
        )
        assert all(value in (2, 3, 4, 5) for value in schema)
        two = {"template": "{prompt} {completion} good: short: ", "questions": {"good": 1, "short": 1}}
        schema, metrics = ask("judge", url, **two, structured=True, max_tokens=60)(prompts, completions)
        assert all(0 <= value <= 10 and value * 2 % 1 == 0 for value in schema) and metrics["judge/unparsable"] == 0

        duels = {"structured_outputs": {"choice": ["A", "B"]}}
        rates, metrics = ask("pairwise_judge", url, max_tokens=2, extra_body=duels)(["p"] * 3, ["a", "b", "c"])
        assert sum(rates) == pytest.approx(1.5) and metrics["pairwise_judge/unparsable"] == 0


def seeing(folder):
    """A random model of the shapes world that is sure of itself, and its processor."""
    from unigrpo.toy.making.clip import checkpoint, load

    generator = torch.Generator().manual_seed(5)
    processor = yes_no.build_processor()
    model = yes_no.build_model(processor.tokenizer, load(checkpoint("shapes"))[0], generator=generator)
    model.lm_head.weight.data *= 20
    yes_no.save(model.eval(), processor, folder)
    return model, processor


def test_pictures_and_a_server_that_is_restarted_in_the_middle(tmp_path):
    model, processor = seeing(tmp_path / "seeing")
    rng = np.random.default_rng(0)
    specs = shapes.SPECS[::20]
    drawn = [shapes.render(spec, rng) for spec in specs]
    prompts = [shapes.caption(spec) for spec in specs]

    def directly(asked):
        with torch.no_grad():
            return yes_no.next_word(model, processor, to_pixels(drawn), asked).softmax(1)

    def of(word, shares):
        return shares[:, processor.tokenizer.convert_tokens_to_ids(word)]

    shares = directly([yes_no.QUESTION.format(prompt=prompt) for prompt in prompts])
    expected = (of("yes", shares) / (of("yes", shares) + of("no", shares))).tolist()
    assert max(expected) - min(expected) > 0.01, "pictures make a difference"
    red = of("red", directly(["What color is it?"] * len(drawn)))
    dark = of("no", directly(["Does this show white?"] * len(drawn)))
    questions = [[["What color is it?", "red"], ["Does this show white?", "no"]]] * len(drawn)

    port, log = free_port(), tmp_path / "log"
    every = len(processor.tokenizer)
    served = tmp_path / "seeing", port, log, "--max-model-len", "256", "--max-logprobs", str(every)
    with vllm_serving(*served) as url:
        scores, metrics = ask("vqa_score", url, top_logprobs=every)(prompts, drawn)
        assert scores == pytest.approx(expected, abs=1e-4) and metrics["vqa_score/completion_tokens"] == len(drawn)
        asked = {"template": "{question}", "max_tokens": 1, "top_logprobs": every}
        for mean, right in (("geometric", (red * dark).sqrt()), ("arithmetic", (red + dark) / 2)):
            soft, _ = ask("soft_tifa", url, **asked, mean=mean)(prompts, drawn, questions=questions)
            assert soft == pytest.approx(right.tolist(), abs=1e-4)

    # It is gone. The call waits for the next one, asks again, and every row gets the score of its own picture.
    got = {}
    patient = ask("vqa_score", url, top_logprobs=every, retries=60, backoff=1.0, deadline=600.0)
    waiting = threading.Thread(
        target=lambda: got.update(zip(("scores", "metrics"), patient(prompts, drawn), strict=True))
    )
    waiting.start()
    time.sleep(2)
    with vllm_serving(*served):
        waiting.join(300)
    assert got["scores"] == pytest.approx(expected, abs=1e-4) and got["metrics"]["vqa_score/retries"] > 0


@pytest.mark.parametrize("endpoint", ["classify", "pooling"])
def test_a_reward_model(tmp_path, endpoint):
    tokenizer = tiny_judges.byte_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        **{**tiny_judges.TEXT, **WIDE},
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForSequenceClassification(config).eval()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "rm")
    prompts, completions = ["1 + 1?", "Why?"], ["2", "because"]
    expected = []
    for prompt, completion in zip(prompts, completions, strict=True):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            expected.append(model(**ids).logits[0, 0].item())
    with vllm_serving(
        tmp_path / "rm", free_port(), tmp_path / "log", "--runner", "pooling", "--max-model-len", "512"
    ) as url:
        for activation, right in ((False, expected), (True, torch.tensor(expected).sigmoid().tolist())):
            scores, _ = ask("reward_model_server", url, endpoint=endpoint, activation=activation)(prompts, completions)
            assert scores == pytest.approx(right, abs=1e-3)
