"""Every reward that ships keeps the protocol: one score an answer, None where it does not apply, in whatever order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from unigrpo.rewards import REWARDS, get_reward
from unigrpo.testing import check_reward
from unigrpo.toy.shapes import Spec, render

from ..support.images import picture
from ..support.reward_rows import RED, answers


DRAWN, WRITTEN = answers(RED), answers("some text")
UNSOLVABLE = answers("5", solution=[None])
CIRCLE = render(Spec("small", "red", "circle", "left"), np.random.default_rng(0))
BLANK = Image.new("RGB", (32, 32))

SHIPPED = {
    "answer_correctness": (answers("7", "yes", solution=["7", "no"]), [1, 0], (0, 1), DRAWN + UNSOLVABLE),
    "code_tests": (
        answers("def f(x): return x + 1", "def f(x): return 1", test=["assert f(1) == 2"] * 2),
        [1, 0],
        (0, 1),
        DRAWN + answers("def f(x): return 1", test=[None]),
    ),
    "colour": (answers(RED, picture(0), colour=["red", "red"]), [1, 0], (0, 1), WRITTEN),
    "pixel_similarity": (
        answers(RED, picture(0), images=[[RED], [RED]]),
        None,
        (0, 1),
        WRITTEN + answers(RED, images=[None]),
    ),
    "countdown": (
        answers("3 * 4 + 2", "3 + 4 + 2", "14", numbers=[[3, 4, 2]] * 3, target=[14] * 3),
        [1, 0.1, 0],
        (0, 1),
        DRAWN,
    ),
    "exact_match": (answers("to  be", "To be", solution=["to be"] * 2), [1, 0], (0, 1), DRAWN + UNSOLVABLE),
    "jpeg_size": (answers(RED, picture(1)), None, (0, math.inf), WRITTEN),
    "json_schema": (
        answers("[1]", "{}", schema=['{"type": "array"}'] * 2),
        [1, 0],
        (0, 1),
        DRAWN + answers("1", schema=[None]),
    ),
    "length": (
        [
            {**row, "completion_ids": [0] * count}
            for row, count in zip(answers("a", "b", "c"), (8, 9, 20), strict=True)
        ],
        [0, -0.5, -1],
        (-1, 0),
        DRAWN,
    ),
    "math_correctness": (answers("so 131", "130", solution=["#### 131", "131"]), [1, 0], (0, 1), DRAWN + UNSOLVABLE),
    "multiple_choice": (answers("(B)", "C", solution=["B", 1]), [1, 0], (0, 1), DRAWN + UNSOLVABLE),
    "object_check": (
        answers(CIRCLE, BLANK, include=[[{"class": "circle", "color": "red", "position": "left"}]] * 2),
        [1, 0],
        (0, 1),
        WRITTEN + answers(CIRCLE, include=[None]),
    ),
    "ocr": (
        answers(RED, RED, picture(0), text=["R ed", "reed", "blue"]),
        [1, 0.75, 0],
        (0, 1),
        WRITTEN + answers(RED, prompt="a sign") + answers(RED, text=[None], prompt=""),
    ),
    "regex": (
        answers("year 2025", "soon", pattern=["[0-9]{4}"] * 2),
        [1, 0],
        (0, 1),
        DRAWN + answers("1", pattern=[None]),
    ),
    "repetition": (answers("a b c d e", "a b c d " * 9), [0, -29 / 33], (-1, 0), DRAWN),
    "sudoku": (
        answers("1234341221434321", "1" * 16, puzzle=["." * 16] * 2, solution=["1234341221434321"] * 2),
        [1, 0.25],
        (0, 1),
        DRAWN,
    ),
    "tag_count": (
        answers("<think>a</think><answer>5</answer>", "<answer>5", prompt=[{"role": "user", "content": "?"}]),
        [1, 0.25],
        (0, 1),
        DRAWN,
    ),
    "think_format": (
        answers("<think>a</think>5", "5", prompt=[{"role": "user", "content": "?"}]),
        [1, 0],
        (0, 1),
        DRAWN,
    ),
}
ARGUMENTS = {
    "length": {"max_completion_length": 10, "soft_punish_cache": 2},
    "object_check": {"detector": "unigrpo.toy.pixel_check:detect"},
    "ocr": {"reader": "tests.support.reward_rows:read_colour"},
}
"""Of rewards that must be given some."""

ASK_SOMEBODY = {
    "aesthetic", "clip_score", "hps_v2", "image_reward", "judge", "pick_score", "reasoning_gym", "remote", "siglip_score",
}  # fmt: skip
ASK_SOMEBODY |= {"pairwise_judge", "reward_model_server", "soft_tifa", "vqa_score"}
"""They need weights, a service or an extra; their own tests bring them."""


def test_every_reward_has_a_case():
    assert {*SHIPPED, *ASK_SOMEBODY} == {*REWARDS}


@pytest.mark.smoke
@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_keeps_the_protocol(name):
    rows, expected, limits, none_for = SHIPPED[name]
    scores = check_reward(get_reward(name, **ARGUMENTS.get(name, {})), rows, range=limits, none_for=none_for)
    if expected is not None:
        assert scores == pytest.approx(expected, abs=0.05)
