"""What the rows of every toy world promise: the same arguments give the same rows, and a split that there is."""

from __future__ import annotations

import pytest

from unigrpo.toy import arithmetic, countdown, emoji, emoji_riddles, riddles, running_sums, shapes, sudoku


WORLDS = {
    "arithmetic": arithmetic.problems,
    "countdown": countdown.problems,
    "emoji": emoji.problems,
    "riddles": riddles.problems,
    "riddles of emoji": emoji_riddles.problems,
    "running sums": running_sums.problems,
    "shapes": shapes.problems,
    "questions about shapes": shapes.questions,
    "sudoku": sudoku.problems,
}


@pytest.mark.smoke
@pytest.mark.parametrize("world", WORLDS)
def test_rows_are_a_function_of_their_arguments(world):
    make = WORLDS[world]
    assert make("train", 30, seed=1) == make("train", 30, seed=1)
    assert make("train", 30, seed=1) != make("train", 30, seed=2)
    assert make("test", 20) == make("test", 60)[:20]
    with pytest.raises(ValueError, match="dev"):
        make("dev", 1)
