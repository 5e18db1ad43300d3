"""The parts that the examples write themselves are what they say."""

from __future__ import annotations

import runpy
from typing import Any

import numpy as np
import torch

from unigrpo.algorithm.noising import Answer
from unigrpo.samplers import LeftToRight, SemiAutoregressive
from unigrpo.testing import check_reward
from unigrpo.testing.rollouts import streams
from unigrpo.testing.world import LENGTH, PROMPTS, TinyPolicy, tiny_model
from unigrpo.toy.shapes import SPECS, render

from .support import ROOT


def parts(name: str) -> dict[str, Any]:
    """What an example defines."""
    return runpy.run_path(str(ROOT / "examples" / name), run_name="example")


def test_the_span_lies_anywhere_and_says_its_chance():
    """Over all its places: contiguous, in the answer alone, as likely as it says, and moved by no padding."""
    span, n, size = parts("custom_noising.py")["Span"](share=0.4), 7, 3

    def answer(padding: int) -> Answer:
        place = torch.arange(padding + 12) - padding
        own, fill = (place >= 3) & (place < 3 + n), (place >= 3)
        return Answer(completion=own, fill=fill, prompt=(place >= 0) & ~fill, step_map=torch.where(own, 0, -1))

    found = {}
    for row in range(200):
        (draw,), (moved,) = (span.draws(answer(padding), 0, 1, 1, (0, 0, row)) for padding in (0, 4))
        assert torch.equal(draw.hidden, draw.target) and torch.equal(draw.hidden, moved.hidden[4:])
        found[tuple(draw.hidden.nonzero().flatten().tolist())] = draw
    assert sorted(found) == [tuple(range(start, start + size)) for start in range(3, 3 + n - size + 1)]
    often = torch.stack([draw.hidden for draw in found.values()]).float().mean(dim=0)
    for draw in found.values():
        assert torch.allclose(draw.probability[draw.hidden], often[draw.hidden])
    two = span.draws(answer(0), 0, 1, 2, (0, 0, 0)) + span.draws(answer(0), 1, 2, 2, (0, 0, 0))
    assert {draw.share for draw in two} == {0.5} and len({tuple(draw.hidden.tolist()) for draw in two}) > 1


def test_the_window_lies_between_left_to_right_and_any_order():
    """With one hole it is the library's sampler from the left, with all of them the one that takes the surest; else in between."""
    window = parts("custom_sampler.py")["Window"]
    model, policy = tiny_model(), TinyPolicy()
    canvas = policy.encode([{"prompt": prompt} for prompt in PROMPTS])

    def rollout(sampler):
        return sampler(model, policy, canvas, generators=streams(len(PROMPTS)))

    ends = {1: LeftToRight(), LENGTH: SemiAutoregressive(steps=LENGTH, block_length=LENGTH)}
    for holes, sampler in ends.items():
        own, expected = rollout(window(window=holes)), rollout(sampler)
        assert torch.equal(own.canvas.ids, expected.canvas.ids) and torch.equal(own.step_map, expected.step_map)
    looked = set()
    for fill, steps in zip(canvas.fill_mask, rollout(window(window=3)).step_map, strict=True):
        own = [int(step) for step in steps[fill]]
        for place, step in enumerate(own):
            if step >= 0:
                looked.add(sum(not 0 <= earlier < step for earlier in own[:place]))
    assert looked == {0, 1, 2}


def test_rewards_of_one_task_say_none_of_the_others():
    own = parts("mixed_tasks.py")
    picture = render(SPECS[0], np.random.default_rng(0))
    drawn = {"prompt": "", "completion": picture, "solution": "red circle center"}
    texts = [
        {"prompt": "", "completion": text, "solution": gold}
        for text, gold in (("<think>1</think>131", "#### 131"), ("red", "red"), ("red", "blue"))
    ]
    assert check_reward(own["said"], texts, range=(0, 1), none_for=[drawn]) == [1, 1, 0]
    wrong = {**drawn, "solution": "blue circle center"}
    assert check_reward(own["drawn"], [drawn, wrong], range=(0, 1), none_for=texts) == [1, 0]
