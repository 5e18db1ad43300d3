"""Every reward that ships keeps the protocol: one score an answer, None where it does not apply, in whatever order."""

from __future__ import annotations

import math

import pytest

from unigrpo.rewards import REWARDS
from unigrpo.testing import check_reward

from ..support.images import picture
from ..support.reward_rows import RED, answers


DRAWN, WRITTEN = answers(RED), answers("some text")
UNSOLVABLE = answers("5", solution=[None])

SHIPPED = {
    "answer_correctness": (answers("7", "yes", solution=["7", "no"]), [1, 0], (0, 1), DRAWN + UNSOLVABLE),
    "colour": (answers(RED, picture(0), colour=["red", "red"]), [1, 0], (0, 1), WRITTEN),
    "countdown": (
        answers("3 * 4 + 2", "3 + 4 + 2", "14", numbers=[[3, 4, 2]] * 3, target=[14] * 3),
        [1, 0.1, 0],
        (0, 1),
        DRAWN,
    ),
    "jpeg_size": (answers(RED, picture(1)), None, (0, math.inf), WRITTEN),
    "math_correctness": (answers("so 131", "130", solution=["#### 131", "131"]), [1, 0], (0, 1), DRAWN + UNSOLVABLE),
    "sudoku": (
        answers("1234341221434321", "1" * 16, puzzle=["." * 16] * 2, solution=["1234341221434321"] * 2),
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
ASK_SOMEBODY = {"clip_score", "image_reward", "judge", "remote"}
"""They need weights or a service; their own tests bring them."""


def test_every_reward_has_a_case():
    assert {*SHIPPED, *ASK_SOMEBODY} == {*REWARDS}


@pytest.mark.smoke
@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_keeps_the_protocol(name):
    rows, expected, limits, none_for = SHIPPED[name]
    scores = check_reward(name, rows, range=limits, none_for=none_for)
    if expected is not None:
        assert scores == pytest.approx(expected, abs=0.05)
