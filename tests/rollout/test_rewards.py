"""Calling rewards: columns by name, None, async, models, and errors that name the reward."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trl.rewards as trl_rewards
from transformers import BertConfig, BertForSequenceClassification

from unigrpo.errors import RewardError
from unigrpo.rollout.rewards import RewardSet, offload, resolve_reward, reward_name, without_weights
from unigrpo.runs.build import ForTask
from unigrpo.training.setup import reward_set

from ..support.answers import answers, sample
from ..support.tiny import golden_tokenizer
from ..support.tolerances import assert_rounding


def score(functions, rows=None, **options):
    functions = functions if isinstance(functions, list) else [functions]
    return RewardSet(functions=functions, **options).score(answers() if rows is None else rows).values


@pytest.mark.smoke
def test_columns_arrive_by_name():
    seen = {}

    def reward(prompts, completions, completion_ids, task, trainer_state, solution, level, **others):
        seen.update(locals())
        return [1.0, 2.0, 3.0]

    rows = answers(solution=["a", "b", "c"], level=[1, 2, 3], image=["x", "y", "z"])
    state = SimpleNamespace(global_step=7)
    assert RewardSet(functions=[reward]).score(rows, state).values.tolist() == [[1.0], [2.0], [3.0]]
    assert set(seen.pop("others")) == {"images", "log_extra", "log_metric"}
    assert {name: value for name, value in seen.items() if name != "seen"} == {
        "prompts": ["question 0", "question 1", "question 2"],
        "completions": ["answer 0", "answer 1", "answer 2"],
        "completion_ids": [[0, 1], [1, 2], [2, 3]],
        "task": ["text"] * 3,
        "solution": ["a", "b", "c"],
        "level": [1, 2, 3],
        "trainer_state": state,
    }


def test_a_reward_may_name_thoughts_in_a_run_that_has_some_rows_without():
    """A window of a mixed run may have no answer with one; a column of that name is the user's own."""
    seen = []

    def reward(completions, thoughts):
        seen.append(thoughts)
        return [0.0] * len(completions)

    rewards = RewardSet(functions=[reward])
    rewards.score(answers())
    rewards.score(answers(thoughts=["a", "b", "c"]))
    assert seen == [[None] * 3, ["a", "b", "c"]]


def test_a_reward_gets_what_it_names_and_no_more():
    """One picture a row is TRL's column ``image``; without ``**kwargs`` the other columns stay away."""
    rows = answers(solution=["a", "b", "c"])
    rows[:2] = [replace(rows[0], images=["one"]), replace(rows[1], images=["two", "three"])]
    seen = []

    def reward(completions, image, solution, hint=5):
        seen.append((completions, image, solution, hint))
        return [1.0] * len(completions)

    assert score([reward, ForTask(reward, "text")], rows).sum() == 6
    assert seen == [(["answer 0", "answer 1", "answer 2"], ["one", "two", None], ["a", "b", "c"], 5)] * 2


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_column_that_is_not_there_is_named_with_those_that_are(wrapped):
    def reward(completions, gold, **_):
        raise AssertionError

    sentence = r"'reward' raised TypeError: it takes 'gold', which is neither a column of the dataset \(\['solution'\]"
    with pytest.raises(RewardError, match=sentence):
        score(ForTask(reward, "text") if wrapped else reward, answers(solution=["a", "b", "c"]))


def test_rewards_of_trl_score_texts_as_conversations():
    """Of string prompts too, for which TRL hands on strings that its own rewards cannot read; other rewards get strings."""
    texts = ["<think>\n1 + 1\n</think>\n\\boxed{2}", r"\boxed{2}", r"<think>a</think> \boxed{3}"]
    rows = [replace(own, completion=text) for own, text in zip(answers(solution=["$2$"] * 3), texts, strict=True)]
    format_reward, cut = trl_rewards.think_format_reward, trl_rewards.get_soft_overlong_punishment(3, 2)
    found = score([format_reward, ForTask(format_reward, "text"), trl_rewards.reasoning_accuracy_reward, cut], rows)
    assert found.T.tolist() == [[1.0, 0.0, 1.0]] * 2 + [[1.0, 0.0, 0.0], [-0.5] * 3]
    of_messages = lambda completions, **_: [float(len(own[0]["content"])) for own in completions]  # noqa: E731
    sentence = r"string indices.*A prompt that is a string has a string for its completion"
    with pytest.raises(RewardError, match=sentence):
        score(of_messages, rows)


def test_none_becomes_nan():
    values = score([lambda **_: [1, None, 0.5], lambda **_: [True, False, None]])
    assert values.nan_to_num(-1.0).tolist() == [[1.0, 1.0], [-1.0, 0.0], [0.5, -1.0]]
    assert values.isnan().tolist() == [[False, False], [True, False], [False, True]]


@pytest.mark.parametrize("kind", [torch.tensor, np.array, tuple, list])
def test_kinds_of_results(kind):
    assert score(lambda **_: kind([0.0, 0.25, 1.0])).squeeze(1).tolist() == [0.0, 0.25, 1.0]


def meeting(parties: int):
    """Async rewards that finish only once all of them have started."""
    arrived = []

    def reward(value):
        async def run(completions, **_):
            arrived.append(value)
            for _ in range(1000):
                if len(arrived) == parties:
                    return [value] * len(completions)
                await asyncio.sleep(0.001)
            raise AssertionError("the other reward never started")

        return run

    return reward


def test_async_rewards_run_together_and_beside_sync_ones():
    reward = meeting(2)
    values = score([reward(1.0), lambda **_: [2.0] * 3, reward(3.0)])
    assert values.tolist() == [[1.0, 2.0, 3.0]] * 3


def test_async_reward_inside_a_running_loop():
    async def notebook():
        return score(meeting(1)(4.0))

    assert asyncio.run(notebook()).tolist() == [[4.0]] * 3


def named_reward(**_):
    return [1.0]


def test_chat_prompts_get_messages():
    rows = [sample({"prompt": [{"role": "user", "content": "hello"}]}, "yes"), sample("plain", "no")]
    seen = []
    score(lambda completions, **_: seen.extend(completions) or [0.0, 0.0], rows)
    assert seen == [[{"role": "assistant", "content": "yes"}], "no"]


def test_extras_and_metrics_are_collected_anew_each_call():
    def reward(completions, log_extra, log_metric, **_):
        log_extra("extracted", [len(c) for c in completions])
        log_metric("parsed", 1)
        log_metric("parsed", 0)
        return [0.0] * len(completions)

    rewards = RewardSet(functions=[reward])
    for count in (3, 1):
        found = rewards.score(answers(count))
        assert (found.extras, found.metrics) == ({"extracted": [8] * count}, {"parsed": [1.0, 0.0]})


class Judge:
    def __call__(self, **_):
        return [1.0]


def test_names():
    def math_reward(**_): ...
    def math(**_): ...
    def math_2(**_): ...

    assert reward_name(named_reward) == "named_reward"
    assert reward_name(partial(partial(named_reward, a=1), b=2)) == "named_reward"
    assert reward_name(Judge()) == "Judge"
    judges = RewardSet(functions=[Judge(), named_reward, Judge(), Judge()])
    assert judges.names == ["Judge", "named_reward", "Judge_2", "Judge_3"]
    assert RewardSet(functions=[math_reward, math]).names == ["math_reward", "math"], "one begins like the other"
    names = RewardSet(functions=[math_2, math, math]).names
    assert len(set(names)) == 3 and names[:2] == ["math_2", "math"]


@pytest.fixture(scope="module")
def judge_path(tmp_path_factory):
    """A tiny sequence classifier with its tokenizer, saved."""
    tokenizer = judge_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"max_position_embeddings": 32, "initializer_range": 0.5, "num_labels": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes))
    path = tmp_path_factory.mktemp("judges") / "tiny-judge"
    for own in (model, tokenizer):
        own.save_pretrained(path)
    return str(path)


def judge_tokenizer():
    tokenizer = golden_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return tokenizer


JUDGED = [
    sample("w1 w2", " w3"),
    sample("w9", " w8 w7 w6 w5"),
    sample({"prompt": [{"role": "user", "content": "w5 w6"}]}, "w7"),
    sample("w1", object(), task="t2i"),
]


@torch.no_grad()
def judged_alone(path: str) -> list[float]:
    model = BertForSequenceClassification.from_pretrained(path).eval()
    texts = [[1, 2, 3], [9, 8, 7, 6, 5], [5, 6, 7]]
    return [model(torch.tensor([ids])).logits[0, 0].item() for ids in texts]


def test_reward_model_by_path(judge_path):
    rewards = RewardSet(functions=[resolve_reward(judge_path)])
    assert rewards.names == ["tiny-judge"]
    values, expected = rewards.score(JUDGED).values.squeeze(1), judged_alone(judge_path)
    assert len({round(value, 4) for value in expected}) == 3
    assert_rounding(values[:3], torch.tensor(expected))
    assert math.isnan(values[3])


def test_reward_model_as_module(judge_path):
    model = BertForSequenceClassification.from_pretrained(judge_path)
    by_path = score(resolve_reward(judge_path), JUDGED)
    for function in (resolve_reward(model), resolve_reward(model, judge_tokenizer())):
        torch.testing.assert_close(score(function, JUDGED), by_path, equal_nan=True)
    model.config.name_or_path = ""
    with pytest.raises(ValueError, match=r"BertForSequenceClassification needs its tokenizer"):
        resolve_reward(model)


def test_rewards_get_the_same_arguments_in_every_window():
    """Columns that the run knows, and ``images``, are there also where no row of the batch has them."""
    seen = []

    def reward(prompts, completions, images, solution, colour, **_):
        seen.append((images, solution, colour))
        return [0.0] * len(prompts)

    rewards = RewardSet(functions=[reward])
    rewards.know_columns({"prompt": "a", "solution": "1"}, {"prompt": "b", "colour": "red", "image": object()})
    rewards.score(answers(solution=["a", "b", "c"]))
    rewards.score(answers(colour=["red", "blue", "red"]))
    nothing = [None] * 3
    assert seen == [(nothing, ["a", "b", "c"], nothing), (nothing, nothing, ["red", "blue", "red"])]


class Waiting:
    """A reward of one's own that says it can wait on the CPU."""

    offload = False

    def __call__(self, completions, **_):
        return [1.0] * len(completions)


@pytest.mark.parametrize("on", [True, False])
def test_rewards_with_a_model_are_told_whether_to_wait_on_the_cpu(judge_path, on):
    """Also inside a reward for one task; what has no model is left alone."""
    judge, own = resolve_reward(judge_path), Waiting()
    functions = [judge, ForTask(own, "text"), named_reward]
    made = reward_set(functions, None, None, offload_models=on)
    assert made.functions == functions and (judge.offload, own.offload) == (on, on)
    assert not hasattr(named_reward, "offload")


def test_an_offloaded_reward_model_is_on_its_device_for_a_call(judge_path, monkeypatch):
    card, seen = "cpu:0", []
    expected = score(resolve_reward(judge_path), JUDGED)[:3]
    judge = resolve_reward(judge_path)
    move, forward = judge.model.to, judge.model.forward
    monkeypatch.setattr(judge.model, "to", lambda device: (seen.append(str(device)), move(device))[1])
    monkeypatch.setattr(judge.model, "forward", lambda **batch: (seen.append("scores"), forward(**batch))[1])
    assert judge.to(card) is judge and seen == [card]
    # Kernels of the CPU round by how weights lie in memory.
    assert_rounding(score(judge, JUDGED)[:3], expected)
    assert seen == [card, "scores"]
    offload([judge], True)
    seen.clear()
    judge.to(card)
    assert seen == ["cpu"]
    for _ in range(2):
        seen.clear()
        assert_rounding(score(judge, JUDGED)[:3], expected)
        assert seen == [card, "scores", "cpu"]
    seen.clear()
    monkeypatch.setattr(judge.model, "forward", None)
    with pytest.raises(TypeError):
        judge(["w1"], ["w2"])
    assert seen == [card, "cpu"]
    seen.clear()
    assert judge(["w1"], [object()]) == [None] and seen == []


def test_a_reward_model_is_counted_without_weights(judge_path):
    real = BertForSequenceClassification.from_pretrained(judge_path, num_labels=1)
    for reward in (judge_path, resolve_reward(judge_path)):
        outline, _ = without_weights(reward)
        shapes = {name: own.shape for name, own in real.named_parameters()}
        assert {name: own.shape for name, own in outline.named_parameters()} == shapes
        assert all(own.is_meta for own in outline.parameters())
    for reward in (named_reward, "math_correctness", "tests.rollout.test_rewards:named_reward"):
        assert without_weights(reward) is None
    with pytest.raises(OSError):
        without_weights("nobody/no-such-judge")
