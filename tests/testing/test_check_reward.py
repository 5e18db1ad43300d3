"""``check_reward`` fails on one broken reward for each thing that it checks."""

from __future__ import annotations

import asyncio
import math
import random

import numpy as np
import pytest
import torch

from unigrpo.testing import check_reward

from ..support.reward_rows import RED, answers


DRAWN = answers(RED)
ROWS = answers("a", "bbb", "cc", solution=["a", "b", "c"])


def length(completions, **_):
    return [len(own) if isinstance(own, str) else None for own in completions]


class Asks:
    """An object, and async."""

    async def __call__(self, completions, log_extra, log_metric, **_):
        await asyncio.sleep(0)
        log_extra("length", [len(own) for own in completions])
        log_metric("longest", np.float32(3.0))
        return torch.tensor([len(own) / 3 for own in completions])


@pytest.mark.smoke
def test_functions_classes_coroutines_iterators_and_tensors():
    assert check_reward(length, ROWS, range=(0, 3), none_for=DRAWN) == [1, 3, 2]
    assert check_reward(Asks, ROWS, range=(0, 1)) == pytest.approx([1 / 3, 1, 2 / 3])
    assert check_reward(lambda completions, **_: (len(own) > 1 for own in completions), ROWS) == [0, 1, 1]


def test_inside_a_running_loop():
    async def notebook():
        return check_reward(Asks(), ROWS)

    assert asyncio.run(notebook())[1] == 1


def test_a_reward_that_rolls_dice_says_so():
    def dice(completions, **_):
        return [random.random() for _ in completions]

    check_reward(dice, ROWS, range=(0, 1), deterministic=False)


def test_one_row_is_no_test():
    with pytest.raises(ValueError, match="two rows or more"):
        check_reward(length, ROWS[:1])


def takes_by_place(completions, /):
    return [0.0] * len(completions)


def wants_a_column(completions, gold, **_):
    return [0.0] * len(completions)


def one_for_all(completions, **_):
    return 0.5


def too_few(completions, **_):
    return [1.0] * (len(completions) - 1)


def endless(**_):
    while True:
        yield 1.0


def says_nan(completions, **_):
    return [math.nan if own == "cc" else 1.0 for own in completions]


def says_good(completions, **_):
    return ["good" for _ in completions]


async def awaits_nothing(completions, **_):
    return None


def never_applies(completions, **_):
    return [None] * len(completions)


def zero_for_pictures(completions, **_):
    return [float(len(own)) if isinstance(own, str) else 0.0 for own in completions]


def none_in_mixed_company(completions, **_):
    """Drops the texts too where there is a picture among them."""
    if not all(isinstance(own, str) for own in completions):
        return [None] * len(completions)
    return [1.0] * len(completions)


def sorts(completions, **_):
    completions.sort()
    return [0.0] * len(completions)


def paints(completions, **_):
    for own in completions:
        own.paste("blue", (0, 0, 2, 2))
    return [0.0] * len(completions)


def rolls_dice(completions, **_):
    return [random.random() for _ in completions]


def by_place(completions, **_):
    return [float(place) for place in range(len(completions))]


def logs_a_total(completions, log_extra, **_):
    log_extra("length", [sum(map(len, completions))])
    return [0.0] * len(completions)


def logs_infinity(completions, log_metric, **_):
    log_metric("best", math.inf)
    return [0.0] * len(completions)


BROKEN = {
    takes_by_place: (ROWS, "cannot take what a run hands it: missing a required argument: 'completions'"),
    wants_a_column: (ROWS, "cannot take what a run hands it: it takes 'gold', which is neither a column"),
    one_for_all: (ROWS, "returned a float: return a list with one score an answer, 3 here"),
    too_few: (ROWS, "returned 2 scores for 3 answers"),
    endless: (ROWS, "returned 4 scores for 3 answers"),
    says_nan: (ROWS, "returned nan for row 2"),
    says_good: (ROWS, "returned 'good' for row 0"),
    awaits_nothing: (ROWS, "returned a NoneType"),
    never_applies: (ROWS, "None for every row"),
    length: (answers("a" * 11, "b"), r"returned 11.0 for row 0, outside its range \[0, 10\]"),
    zero_for_pictures: (ROWS, r"returned 0.0 for none_for\[0\].* a 0 would count as a bad answer"),
    none_in_mixed_company: (ROWS, "row 0 gets 1.0 at first and None beside rows"),
    sorts: (answers("b", "a"), "changed its argument completions"),
    paints: (answers(RED, RED), "changed its argument completions"),
    rolls_dice: (ROWS, "row 0 gets .* when it is called again"),
    by_place: (ROWS, "row 0 gets 0.0 at first and 2.0 in another order"),
    logs_a_total: (ROWS, "got 1 values: it takes a name and one value for each of 3 answers"),
    logs_infinity: (ROWS, "takes a name and a finite number"),
}


@pytest.mark.parametrize("reward", BROKEN, ids=lambda reward: reward.__name__)
def test_a_broken_reward_is_told_what_is_wrong(reward):
    rows, message = BROKEN[reward]
    none_for = DRAWN if reward in (zero_for_pictures, none_in_mixed_company) else ()
    with pytest.raises(AssertionError, match=f"{reward.__name__}: .*{message}"):
        check_reward(reward, rows, range=(0, 10), none_for=none_for)
