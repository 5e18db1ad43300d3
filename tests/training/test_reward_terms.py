"""Terms of rewards in a run: advantages by the formula, what is logged of them, the tables of the log."""

from __future__ import annotations

import math

import pytest
import torch

from unigrpo.config.arguments import UniGRPOConfig
from unigrpo.errors import RecipeError
from unigrpo.rollout.rewards import RewardSet
from unigrpo.runs.build import build_config, build_rewards
from unigrpo.runs.recipe import load_recipe
from unigrpo.training.reward_tables import reward_tables

from ..support.recipes import MINIMAL, recipe
from ..support.runs import logs_of
from ..support.tiny import low_ids


def parity(completion_ids, **_):
    """1 where the first token is even, else 0."""
    return [float(ids[0] % 2 == 0) if ids else None for ids in completion_ids]


def by_formula(low, own, factor, group=4):
    """Advantages of ``2 clip(gated) + factor * win rate``, in plain arithmetic."""
    total = []
    for start in range(0, len(low), group):
        members = range(start, start + group)
        wins = [
            sum((own[i] > own[j]) + (own[i] == own[j]) / 2 for j in members if j != i) / (group - 1) for i in members
        ]
        total += [2.0 * min(max(low[i] if own[i] > 0 else 0.0, 0.1), 0.6) + factor * wins[i - start] for i in members]
    advantages = []
    for start in range(0, len(low), group):
        part = total[start : start + group]
        mean = sum(part) / group
        std = math.sqrt(sum((value - mean) ** 2 for value in part) / (group - 1))
        advantages += [(value - mean) / (std + 1e-4) for value in part]
    return advantages


TERMS = [
    {"gate": "parity", "clip": [0.1, 0.6]},
    {"win_rate": True, "schedule": {"start": 0.0, "end": 3.0, "steps": [1, 3]}},
]


def test_advantages_of_every_window_are_those_of_the_formula(make_trainer):
    tables = []
    trainer = make_trainer(
        rewards=[low_ids, parity],
        reward_weights=[2.0, 1.0],
        reward_terms=TERMS,
        num_generations=4,
        max_steps=3,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_iterations=1,
        logging_steps=1,
        log_rewards=True,
    )
    show = trainer._show_window
    trainer._show_window = lambda window: (tables.append((trainer.state.global_step, window.table)), show(window))
    trainer.train()
    assert [step for step, _ in tables] == [0, 1, 2]
    for step, table in tables:
        factor = {0: 0.0, 1: 0.0, 2: 1.5}[step]
        expected = by_formula(table["low_ids"], table["parity"], factor)
        assert table["advantage"] == pytest.approx(expected, abs=2e-3)
    # What is logged as the reward stays comparable: the raw scores with their weights.
    for log, (_, table) in zip(logs_of(trainer), tables, strict=True):
        raw = [2 * low + own for low, own in zip(table["low_ids"], table["parity"], strict=True)]
        assert log["reward"] == pytest.approx(sum(raw) / len(raw), abs=1e-5)


def test_terms_reach_a_run_from_a_recipe_and_are_refused_in_its_keys(tmp_path):
    own = recipe(tmp_path, MINIMAL, "rewards.0.clip=[0, 1]", "rewards.0.schedule={end: 0.0, steps: [0, 9]}")
    args = build_config(own)
    assert args.reward_terms == [{"clip": [0, 1], "schedule": {"end": 0.0, "steps": [0, 9]}}]
    assert build_config(recipe(tmp_path, MINIMAL)).reward_terms is None
    for change, said in {
        "rewards.0.clip=[1, 0]": r"rewards\[0\].clip=\[1, 0\] must be \[low, high\]",
        "rewards.0.clip=1": r"rewards\[0\].clip=1 must be of type list",
        "rewards.0.win_rate=often": "win_rate='often' must be of type bool",
        "rewards.0.gates=x": "unknown key 'gates'; did you mean 'gate'",
    }.items():
        with pytest.raises(RecipeError, match=said):
            recipe(tmp_path, MINIMAL, change)
    with pytest.raises(RecipeError, match="reward_terms belongs to the rewards"):
        build_config(recipe(tmp_path, MINIMAL, "reward_terms=[{}]"))
    with pytest.raises(ValueError, match=r"reward_terms\[0\].clip"):
        UniGRPOConfig(str(tmp_path), reward_terms=[{"clip": [2, 1]}], use_cpu=True)


def test_a_gate_is_looked_for_among_the_rewards_of_the_recipe():
    gated = ["rewards.0.gate=think_format"]
    assert build_config(load_recipe("quickstart", gated)).reward_terms == [{"gate": "think_format"}, {}]
    build_rewards(load_recipe("quickstart", gated))
    with pytest.raises(
        RecipeError, match=r"rewards: gate='think_fromat' of the reward .* did you mean 'think_format'"
    ):
        build_rewards(load_recipe("quickstart", ["rewards.0.gate=think_fromat"]))


def test_a_score_that_a_schedule_makes_too_large_is_a_fault():
    from unigrpo.algorithm.combining import read_terms

    from ..support.answers import answers

    terms = read_terms([{"schedule": {"start": 1e10, "steps": [0, 1]}}])
    rewards = RewardSet(functions=[lambda completions, **_: [1e30] * len(completions)], terms=terms)
    with pytest.raises(ValueError, match=r"too large with a weight of 1e\+10"):
        rewards.score(answers(1))


def test_a_table_a_task_with_a_line_a_reward():
    logs = {
        **{f"rewards/a/{name}": value for name, value in {"mean": 0.5, "frac_none": 0.25, "frac_ties": 0.125}.items()},
        **{f"rewards/a/{name}/text": 0.5 for name in ("mean", "group_std", "frac_none", "frac_ties")},
        **{"rewards/b/frac_none/text": 1.0, "rewards/a/frac_none/t2i": 1.0, "time/latency/a": 0.25},
    }
    cells = [
        (table.title, [list(column.cells) for column in table.columns]) for table in reward_tables(logs, ["a", "b"], 7)
    ]
    assert cells == [
        (
            "Rewards of task t2i at step 7",
            [["a", "b"], ["-"] * 2, ["-"] * 2, ["-"] * 2, ["100.0%", "-"], ["0.25 s", "-"]],
        ),
        (
            "Rewards of task text at step 7",
            [["a", "b"], ["0.5", "-"], ["0.5", "-"], ["50.0%", "-"], ["50.0%", "100.0%"], ["0.25 s", "-"]],
        ),
    ]
    one = reward_tables({key: value for key, value in logs.items() if key.count("/") == 2}, ["a"], 7)
    assert [table.title for table in one] == ["Rewards at step 7"] and list(one[0].columns[4].cells) == ["25.0%"]
    assert reward_tables({"loss": 1.0}, ["a"], 7) == []


def test_the_table_is_in_the_log_of_a_run(make_trainer, capsys):
    def mostly(completions, **_):
        return [None if place % 4 == 0 else 1.0 for place in range(len(completions))]

    trainer = make_trainer(
        rewards=[low_ids, mostly], num_generations=4, max_steps=1, num_iterations=1, log_rewards=True
    )
    trainer.train()
    shown = capsys.readouterr().out
    line = next(own for own in shown.splitlines() if "│ mostly" in own)
    assert "Rewards at step 1" in shown and "25.0%" in line and "100.0%" in line and line.rstrip(" │").endswith("s")
    (log,) = logs_of(trainer)
    assert log["rewards/mostly/frac_none"] == 0.25 and log["rewards/mostly/frac_ties"] == 1.0
    assert log["rewards/low_ids/frac_none"] == 0.0 and 0 < log["time/latency/low_ids"] < 5
    torch.testing.assert_close(log["rewards/mostly/group_std"], 0.0)
