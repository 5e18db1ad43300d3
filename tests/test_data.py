"""The window sampler and the dataset checks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from datasets import Dataset

from unigrpo.data import WindowLoader, WindowSampler, check_dataset


def arguments(**changes) -> SimpleNamespace:
    """Two prompts a rollout, three answers each, two micro-steps, two inner updates."""
    values = {
        "generation_batch_size": 6,
        "num_generations": 3,
        "steps_per_generation": 2,
        "num_iterations": 2,
        "shuffle_dataset": True,
        "seed": 42,
        "data_seed": None,
        "world_size": 1,
    }
    return SimpleNamespace(**{**values, **changes})


def test_each_prompt_stands_g_times_in_a_row():
    batches = list(WindowSampler(4, arguments(shuffle_dataset=False)))
    assert batches == [[0, 0, 0, 1, 1, 1], [], [], [], [2, 2, 2, 3, 3, 3], [], [], []]


def test_only_whole_windows():
    sampler = WindowSampler(5, arguments())
    batches = list(sampler)
    assert len(sampler) == len(batches) == 8
    used = [index for batch in batches for index in batch]
    assert len(set(used)) == 4
    assert all(used.count(index) == 3 for index in used)


def test_remainder_changes_with_the_epoch():
    sampler = WindowSampler(5, arguments())
    left_out = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        left_out |= set(range(5)) - {index for batch in sampler for index in batch}
    assert left_out == set(range(5))


def test_epochs_reshuffle_deterministically():
    one, two = WindowSampler(8, arguments()), WindowSampler(8, arguments())
    first = list(one)
    assert list(one) == first
    one.set_epoch(1)
    second = list(one)
    assert second != first
    two.set_epoch(1)
    assert list(two) == second
    assert list(WindowSampler(8, arguments(seed=1))) != first
    assert list(WindowSampler(8, arguments(seed=1, data_seed=42))) == first
    assert sorted(index for batch in first for index in batch) == sorted(list(range(8)) * 3)


def test_ranks_take_their_slices_of_one_rollout():
    whole = list(WindowSampler(8, arguments(generation_batch_size=12)))
    split = arguments(generation_batch_size=12, world_size=2)
    ranks = [list(WindowSampler(8, split, rank)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    assert all(len(a) == len(b) for a, b in zip(*ranks, strict=True))
    assert len(ranks[0][0]) == 6


def test_too_few_prompts():
    with pytest.raises(ValueError, match=r"train_dataset has 1 prompts, one rollout needs 2 .*add prompts or lower"):
        WindowSampler(1, arguments())


def test_loader_hands_out_rows_and_passes_the_epoch_on():
    rows = [{"prompt": f"p{i}"} for i in range(4)]
    loader = WindowLoader(rows, WindowSampler(4, arguments()))
    first = list(loader)
    assert [len(batch) for batch in first] == [6, 0, 0, 0] * 2
    assert {row["prompt"] for batch in first for row in batch} == {"p0", "p1", "p2", "p3"}
    loader.set_epoch(1)
    assert list(loader) != first


GOOD = {"prompt": "hello"}
BAD = {
    "empty prompt": ([GOOD, {"prompt": ""}], r"train\[1\]\['prompt'\] must be text or chat messages, got ''"),
    "no prompt": ([GOOD, {"prompt": None}], r"train\[1\]\['prompt'\].*None"),
    "number": ([{"prompt": 3}], r"train\[0\]\['prompt'\].*got 3"),
    "message": ([GOOD, GOOD, {"prompt": [{"role": "user"}]}], r"train\[2\]\['prompt'\].*'role' and 'content'"),
    "strings": ([{"prompt": ["a", "b"]}], r"train\[0\]\['prompt'\].*'role' and 'content'"),
    "task": ([GOOD, {"prompt": "x", "task": "image"}], r"train\[1\]\['task'\]='image'.*text.*mmu.*t2i"),
    "column": ([{"question": "x"}], r"no 'prompt' column, only \['question'\]; rename"),
    "nothing": ([], r"train is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named(case):
    rows, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        check_dataset(rows, "train")


def test_good_rows_pass():
    chat = {"prompt": [{"role": "user", "content": "hi"}], "task": "text"}
    check_dataset([GOOD, chat, {"prompt": "x", "task": None}], "train")
    check_dataset(Dataset.from_list([{"prompt": "a", "solution": 1}, {"prompt": "b", "solution": 2}]), "train")
