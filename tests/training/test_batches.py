"""Cutting a window into units, padding them for other ranks, and collating one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from unigrpo.training import window as window_module
from unigrpo.training.batches import BUCKET, Unit, collate, cut_units, pad_units, unit_draws
from unigrpo.training.old_policy import moves_policy
from unigrpo.types import keyed_generator

from ..support.records import SPACE, row


POLICY = SimpleNamespace(attends_padding=False, pad_token_id=49)
ATTENDING = SimpleNamespace(attends_padding=True, pad_token_id=49)


def cut(rows, dealt=None, policy=POLICY, kl=False, mixes_draws=False):
    draws = [unit_draws(own, mixes_draws) if moves_policy(own, kl) else [] for own in rows]
    return cut_units(rows, draws, [list(range(len(rows)))] if dealt is None else dealt, policy)


@pytest.mark.smoke
def test_rows_of_one_bucket_share_a_unit():
    assert BUCKET == 64
    rows = [row(10), row(64), row(65), row(128), row(129), row(3)]
    assert cut(rows) == [[Unit((0, 1, 5), 0), Unit((2, 3), 0), Unit((4,), 0)]]


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo"])
def test_rows_of_one_length_share_micro_batches(loss_type, monkeypatch):
    """Inside the optimizer step that chance gives a row idle ones go first and lengths are sorted, where no micro-batch
    normalises.
    """
    monkeypatch.setattr(window_module, "rebuild_window", lambda pipe, rows, order: order)
    lengths = torch.randint(1, 5, (24,), generator=torch.Generator().manual_seed(0)) * 64
    rows = [row(int(length), task="t2i" if i % 5 == 0 else "text", index=i) for i, length in enumerate(lengths)]
    for own in rows[::7]:
        own.advantage = 0.0
    settings = SimpleNamespace(needs_reference=False, kl_estimator="k3", beta=0.0)

    def algorithm(kind):
        loss = SimpleNamespace(loss_type=kind)
        return SimpleNamespace(loss=loss, settings=settings, mixes_draws=False, tokenwise=True)

    pipe = SimpleNamespace(
        args=SimpleNamespace(
            seed=3, steps_per_generation=6, gradient_accumulation_steps=3, num_iterations=1, generation_batch_size=24
        ),
        algorithms={"text": algorithm("grpo"), "t2i": algorithm(loss_type)},
        policy=POLICY,
        rank=0,
    )
    order = window_module.cut_window(pipe, rows, window=2)
    steps = window_module.steps_by_index(pipe.args, 2)
    shuffled = torch.randperm(24, generator=keyed_generator("order", 3, 2, 0)).tolist()
    chance = sorted(shuffled, key=lambda index: steps[index])
    if loss_type == "bnpo":
        assert order == chance
        return
    for number, step in enumerate((slice(0, 12), slice(12, 24))):
        assert {steps[index] for index in order[step]} == {number}
        kinds = [(rows[i].advantage != 0, rows[i].task, len(rows[i].ids)) for i in order[step]]
        assert kinds == sorted(kinds)
    units = {
        name: cut(rows, [o[i : i + 4] for i in range(0, 24, 4)]) for name, o in (("own", order), ("chance", chance))
    }
    assert sum(map(len, units["own"])) < sum(map(len, units["chance"]))


def test_every_optimizer_step_gets_one_of_each_run_of_neighbours():
    """So it is the same for any number of processes, each of which has a run of rows; and chance decides who goes where."""
    args = SimpleNamespace(seed=3, steps_per_generation=6, gradient_accumulation_steps=2, generation_batch_size=300)
    steps = window_module.steps_by_index(args, 0)
    runs = [tuple(steps[start : start + 3]) for start in range(0, 300, 3)]
    assert all(sorted(run) == [0, 1, 2] for run in runs)
    counts = [runs.count(run) for run in set(runs)]
    assert len(counts) == 6 and max(counts) < 40
    assert steps == window_module.steps_by_index(args, 0) != window_module.steps_by_index(args, 1)


def test_attended_padding_needs_equal_lengths():
    rows = [row(10), row(11), row(10)]
    assert cut(rows, policy=ATTENDING) == [[Unit((0, 2), 0), Unit((1,), 0)]]


def test_tasks_and_draws_do_not_share_a_unit():
    rows = [row(draws=2), row(draws=2, task="t2i"), row(draws=2)]
    units = cut(rows)[0]
    assert sorted((unit.indices, unit.draw) for unit in units) == [((0, 2), 0), ((0, 2), 1), ((1,), 0), ((1,), 1)]


def test_micro_batches_stay_apart_and_keep_their_order():
    rows = [row(index=i) for i in range(4)]
    assert cut(rows, [[3, 1], [0, 2]]) == [[Unit((3, 1), 0)], [Unit((0, 2), 0)]]


def test_rows_that_cannot_move_the_policy_are_left_out():
    rows = [row(advantage=0.0), row(), row(active=False), row(advantage=0.0, active=False)]
    assert cut(rows) == [[Unit((1,), 0)]]
    assert cut(rows, kl=True) == [[Unit((0, 1), 0)]]
    assert cut([rows[2]], kl=True) == [[]]


def test_mixed_draws_that_share_tokens_stay_together_and_bounded():
    """Six rows of three draws in one forward would be 18; a unit holds as many draws as its micro-batch has rows."""
    rows = [row(draws=3) for _ in range(6)]
    for own in rows:
        own.hidden[:] = own.completion_mask
        own.target[:] = own.completion_mask
    assert cut(rows, mixes_draws=True) == [[Unit((0, 1), None), Unit((2, 3), None), Unit((4, 5), None)]]
    assert cut(rows[:2], mixes_draws=True) == [[Unit((0,), None), Unit((1,), None)]]
    batch = collate(rows, Unit((0, 1), None), 0, POLICY, "cpu", mixes_draws=True)
    assert batch.target.shape == (6, 6) and batch.scale.tolist() == [1.0, 1.0]


def test_missing_draws_make_no_unit():
    rows = [row(draws=2), row(draws=2, missing=(1,))]
    assert cut(rows) == [[Unit((0, 1), 0), Unit((0,), 1)]]


def test_padding_repeats_the_shortest_unit_with_weight_zero():
    rows = [row(100), row(100), row(10)]
    units = cut(rows, [[0, 1, 2], []])
    padded = pad_units(units, [4, 1], rows)
    assert padded[0][:2] == units[0]
    assert padded[0][2:] == [Unit((2,), 0, dummy=True)] * 2
    assert padded[1] == [Unit((0,), 0, dummy=True)]
    assert collate(rows, padded[0][2], 0, POLICY, "cpu").scale.tolist() == [0.0]
    assert collate(rows, padded[0][0], 0, POLICY, "cpu").scale.tolist() == [1.0]


def test_collated_values():
    rows = [row(5, index=0, advantage=2.0), row(7, index=1, advantage=-1.0)]
    rows[0].completion_mask[-1] = False
    batch = collate(rows, Unit((1, 0), 0), 1, POLICY, "cpu")
    assert batch.canvas.ids.tolist() == [[100, 101, 102, 103, 104, 105, 106], [0, 1, 2, 3, 4, 49, 49]]
    assert batch.canvas.attention_mask.tolist() == [[True] * 7, [True] * 5 + [False] * 2]
    assert batch.hidden.nonzero().tolist() == [[0, 5], [1, 3]]
    assert torch.equal(batch.target, batch.hidden)
    assert torch.equal(batch.weight, batch.hidden.float())
    assert batch.advantages.tolist() == [-1.0, 2.0]
    assert batch.completion_length.tolist() == [3.0, 2.0]
    assert batch.canvas.task == "text"
    assert batch.canvas.token_space == SPACE
    assert batch.noisy_ids is None
    assert batch.ref_logps is None
    assert collate(rows, Unit((1, 0), 0), 0, POLICY, "cpu").hidden.nonzero().tolist() == [[0, 4], [1, 2]]


def test_old_log_probabilities_are_used_only_where_known():
    rows = [row(5), row(7)]
    for number, item in enumerate(rows):
        item.old_logps = torch.full_like(item.weight, -1.0 - number)
        item.old_known = torch.tensor([False, True])
    assert collate(rows, Unit((0, 1), 0), 0, POLICY, "cpu").old_logps is None
    old = collate(rows, Unit((0, 1), 0), 1, POLICY, "cpu").old_logps
    assert old.tolist() == [[-1.0] * 5 + [0.0] * 2, [-2.0] * 7]


def test_reference_and_noisy_ids_follow_the_draw():
    rows = [row(4, draws=2)]
    values = torch.arange(16.0).view(2, 2, 4)
    rows[0].ref_logps, rows[0].input_ids = values, values.long()
    batch = collate(rows, Unit((0,), 1), 1, POLICY, "cpu")
    assert batch.ref_logps.tolist() == [[12.0, 13.0, 14.0, 15.0]]
    assert batch.noisy_ids.tolist() == [[12, 13, 14, 15]]


def test_draws_divide_a_row_by_those_it_has():
    rows = [row(draws=4), row(draws=4, missing=(1, 3))]
    assert collate(rows, Unit((0, 1), 0), 0, POLICY, "cpu").scale.tolist() == [0.25, 0.5]
    units = cut(rows)[0]
    total = torch.zeros(2)
    for unit in units:
        for place, index in enumerate(unit.indices):
            total[index] += collate(rows, unit, 0, POLICY, "cpu").scale[place]
    assert total.tolist() == [1.0, 1.0]


def test_extra_inputs_and_positions_travel_along():
    rows = [row(4), row(4)]
    for number, item in enumerate(rows):
        item.extra = {"pixels": torch.full((1, 2), float(number))}
        item.position_ids = torch.arange(4) + number
    batch = collate(rows, Unit((1, 0), 0), 0, POLICY, "cpu")
    assert batch.canvas.extra["pixels"].tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert batch.canvas.position_ids.tolist() == [[1, 2, 3, 4], [0, 1, 2, 3]]
