"""What rewards are given and what they log: nothing that one changes reaches another, and a wrong log costs itself alone."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from unigrpo.errors import RewardError
from unigrpo.rollout.rewards import RewardSet
from unigrpo.runs.build import ForTask
from unigrpo.types import Sample

from ..support.answers import answers, good, raises, raises_later, returning, sample


def vandal(prompts, completions, completion_ids, task, images, meta, trainer_state, log_extra, **_):
    """Changes everything it can reach."""
    log_extra("seen", [own["tags"][0] for own in meta])
    for place in range(len(prompts)):
        prompts[place][0]["content"] = "gone"
        prompts[place].append("more")
        if isinstance(completions[place], Image.Image):
            completions[place].paste((0, 0, 0), (0, 0, 4, 4))
        else:
            completions[place][0]["content"] = "gone"
        completion_ids[place].append(99)
        images[place][0].paste((0, 0, 0), (0, 0, 4, 4))
        meta[place]["tags"].clear()
        meta[place]["array"][:] = 0
        meta[place]["tensor"].zero_()
    for column in (prompts, completions, completion_ids, task, images, meta):
        column.clear()
    trainer_state.global_step = 0
    trainer_state.log_history.clear()
    return [1.0, 1.0]


def test_each_reward_sees_the_original():
    photo, drawn = Image.new("RGB", (4, 4), (9, 8, 7)), Image.new("RGB", (4, 4), (1, 2, 3))

    def answer(number: int, completion):
        chat = [{"role": "user", "content": f"question {number}"}]
        meta = {"tags": [f"tag {number}"], "array": np.ones(2), "tensor": torch.ones(2)}
        return sample({"prompt": chat, "meta": meta}, completion, [5, 6], "mmu", images=[photo])

    rows = [answer(0, "yes"), answer(1, drawn)]
    state = SimpleNamespace(global_step=7, log_history=[{"loss": 1.0}])
    seen = []

    def looks(**arguments):
        arguments.pop("log_extra"), arguments.pop("log_metric")
        assert [pictures[0].getpixel((0, 0)) for pictures in arguments.pop("images")] == [(9, 8, 7)] * 2
        completions = arguments["completions"]
        completions[1] = completions[1].getpixel((0, 0))
        for own in arguments["meta"]:
            own["array"], own["tensor"] = own["array"].tolist(), own["tensor"].tolist()
        seen.append(arguments)
        return [0.0, 0.0]

    rewards = RewardSet(functions=[vandal, looks, vandal, looks])
    for _ in range(2):
        found = rewards.score(rows, state)
    assert len(seen) == 4 and all(own == seen[0] for own in seen[1:])
    assert seen[0] == {
        "prompts": [[{"role": "user", "content": f"question {n}"}] for n in range(2)],
        "completions": [[{"role": "assistant", "content": "yes"}], (1, 2, 3)],
        "completion_ids": [[5, 6], [5, 6]],
        "task": ["mmu", "mmu"],
        "meta": [{"tags": [f"tag {n}"], "array": [1.0, 1.0], "tensor": [1.0, 1.0]} for n in range(2)],
        "trainer_state": state,
    }
    assert (photo.getpixel((0, 0)), drawn.getpixel((0, 0))) == ((9, 8, 7), (1, 2, 3))
    assert (state.global_step, state.log_history) == (7, [{"loss": 1.0}])
    assert found.extras == {"seen": ["tag 0", "tag 1"]}


def test_a_shared_picture_is_copied_once_and_a_broken_one_handed_on(tmp_path):
    photo = Image.effect_noise((64, 64), 50.0)
    photo.save(tmp_path / "photo.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "photo.png").read_bytes()[:500])
    broken = Image.open(tmp_path / "cut.png")
    rows = [*[sample("p", task="mmu", images=[photo])] * 2, sample("p", broken, task="t2i")]
    seen = []
    looks = lambda images, completions, **_: seen.extend([images, completions]) or good(images)  # noqa: E731
    RewardSet(functions=[looks]).score(rows)
    (first, second, _), completions = seen
    assert first[0] is second[0] is not photo and completions[2] is broken


BAD_LOGS = {
    "short column": ("log_extra", "why", ["a"]),
    "no column": ("log_extra", "why", 1.0),
    "text for a column": ("log_extra", "why", "abc"),
    "column without a name": ("log_extra", 3, ["a", "b", "c"]),
    "text for a number": ("log_metric", "why", "many"),
    "infinite": ("log_metric", "why", math.inf),
    "None": ("log_metric", "why", None),
    "metric without a name": ("log_metric", None, 1.0),
}


@pytest.mark.parametrize(("log", "name", "value"), BAD_LOGS.values(), ids=BAD_LOGS.keys())
def test_a_wrong_log_ends_the_run_or_is_left_out(log, name, value):
    def chatty(log_extra, log_metric, **_):
        log_extra("length", [1, 2, 3])
        log_metric("calls", 2)
        log_metric("nothing to report", math.nan)
        {"log_extra": log_extra, "log_metric": log_metric}[log](name, value)
        return [1.0, 2.0, 3.0]

    sentence = rf"'chatty' called {log}\(.*with other than a name and.*'question 0'"
    with pytest.raises(RewardError, match=sentence):
        RewardSet(functions=[chatty]).score(answers())
    with pytest.warns(UserWarning, match=rf"'chatty' called {log}"):
        found = RewardSet(functions=[chatty], on_error="none").score(answers())
    assert found.values.tolist() == [[1.0], [2.0], [3.0]]
    assert (found.extras, found.metrics) == ({"length": [1, 2, 3]}, {"calls": [2.0]})
    assert found.faults.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([1, 2.5, True], [1.0, 2.5, 1.0]),
        ([1, "a", None], ["1", "a", None]),
        ([10**30, 1, 2], [1e30, 1.0, 2.0]),
        (["\ud800", "b", "c"], ["?", "b", "c"]),
        (np.arange(3), [0, 1, 2]),
        ([np.float32(0.5), 1.0, None], [0.5, 1.0, None]),
    ],
)
def test_logged_columns_have_one_kind_of_value(values, kept, tmp_path):
    from unigrpo.training.completions import save_completions

    rewards = RewardSet(functions=[lambda log_extra, **_: log_extra("why", values) or [1.0] * 3])
    found = rewards.score(answers())
    assert found.extras["why"] == kept
    save_completions({"prompt": ["a"] * 3, "completion": ["b"] * 3, **found.extras}, tmp_path, 0)


def two_tasks() -> list[Sample]:
    return [sample("draw", task="t2i"), sample("add"), sample("carry")]


@pytest.mark.parametrize("reward", [raises, raises_later, returning([1.0] * 3), returning("ab")])
def test_a_reward_of_one_task_is_named_with_a_prompt_of_that_task(reward):
    rewards = RewardSet(functions=[ForTask(reward, "text"), good], on_error="none")
    with pytest.warns(UserWarning, match=rf"reward '{reward.__name__}' .*prompt 'add'"):
        found = rewards.score(two_tasks())
    assert found.faults.tolist() == [[2, 0], [0, 0]] and found.values[:, 1].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("values", [["a"], ["a", "b", "c"], 3])
def test_a_wrong_column_of_a_reward_of_one_task(values):
    rewards = [ForTask(lambda log_extra, **_: log_extra("why", values) or [1.0, 2.0], "text")]
    with pytest.warns(UserWarning, match=r"log_extra\('why', ...\) with other than"):
        found = RewardSet(functions=rewards, on_error="none").score(two_tasks())
    assert found.values[1:, 0].tolist() == [1.0, 2.0] and found.extras == {}


def test_a_column_does_not_replace_an_argument_that_is_bound():
    def named(completions, level=0.0):
        return [level] * len(completions)

    def anything(completions, **columns):
        return [columns["level"]] * len(completions)

    samples = [sample({"prompt": "p", "level": 5.0}, "x", index=0)]
    rewards = [
        partial(named, level=2.0),
        partial(anything, level=3.0),
        ForTask(partial(named, level=4.0), "text"),
    ]
    assert RewardSet(rewards).score(samples).values.tolist() == [[2.0, 3.0, 4.0]]
