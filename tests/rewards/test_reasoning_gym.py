"""Tasks of reasoning-gym: the same questions in every process, scored by their own scorers behind bounds."""

from __future__ import annotations

import json

import pytest

from unigrpo.data.gym import problems
from unigrpo.errors import RecipeError
from unigrpo.rewards import get_reward
from unigrpo.runs.build import build_dataset
from unigrpo.runs.dataset_spec import DatasetSpec


gym = pytest.importorskip("reasoning_gym", reason='needs `pip install "unigrpo[reasoning-gym]"`')

TASKS = (
    "chain_sum", "basic_arithmetic", "leg_counting", "spell_backward", "number_sorting", "word_sorting", "gcd", "puzzle24",
    "countdown", "polynomial_multiplication", "acre",
)  # fmt: skip
"""Of those that answer for themselves; some evaluate the answer, one depends on the seed of hashes, one on the number of rows."""


@pytest.fixture(scope="module")
def rows():
    """Four questions that depend on the seed of hashes, of a task whose scorer evaluates the answer."""
    return problems("polynomial_multiplication", "test", 4)


def scored(rows, completions, **arguments):
    logged = {}
    reward = get_reward("reasoning_gym", **arguments)
    sources = [row["reasoning_gym"] for row in rows]
    scores = reward([row["prompt"] for row in rows], completions, reasoning_gym=sources, log_metric=logged.__setitem__)
    return scores, logged["reasoning_gym/timeouts"]


def test_right_answers_score_one_and_code_is_bounded(rows, tmp_path):
    right, written = [row["solution"] for row in rows], tmp_path / "written"
    thoughtful = [
        f"<think>{wrong}</think> <answer> {own} </answer>" for wrong, own in zip(right[::-1], right, strict=True)
    ]
    unfinished = [f"<think>{own}" for own in right]
    attacks = ["9**9**9**9", "[0] * 10**12", f"open({str(written)!r}, 'w')", "__import__('os').fork()", "1" * 20_001]
    scores, overdue = scored([*rows, *rows, *[rows[0]] * 5], [*thoughtful, *unfinished, *attacks], timeout=3.0)
    assert scores[:8] == [1.0] * 4 + [0.0] * 4
    assert all(score < 0.5 for score in scores[8:]) and scores[8] == 0 and overdue == 1 and not written.exists()


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_task_scores_its_own_answers(task):
    rows = problems(task, "train", 8)
    assert scored(rows, [row["solution"] for row in rows]) == ([1.0] * 8, 0)
    assert all(score < 0.5 for score in scored(rows, ["no such thing"] * 8)[0])


def test_a_recipe_opens_a_task_by_its_name(rows):
    spec = DatasetSpec(path="reasoning_gym:polynomial_multiplication", split="train", limit=3, task="text")
    one = build_dataset([spec])
    assert one.column_names == ["prompt", "solution", "reasoning_gym", "task"] and len(one) == 3
    assert not set(one["prompt"]) & {row["prompt"] for row in rows}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "reasoning_gym:chain_sums"}, "did you mean 'chain_sum'"),
        ({"split": "validation"}, "split='validation': choose one of"),
        ({"limit": 0}, "limit=0 must be at least 1"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(change, words):
    with pytest.raises(RecipeError, match=r"^dataset 'reasoning_gym:") as refused:
        build_dataset([DatasetSpec(**{"path": "reasoning_gym:chain_sum", "split": "train", **change})])
    assert words in str(refused.value)


def test_a_question_that_is_made_otherwise_is_not_scored(rows):
    row = rows[0]
    source = {**json.loads(row["reasoning_gym"]), "crc32": 1}
    with pytest.raises(ValueError, match="makes another question of"):
        scored([{**row, "reasoning_gym": json.dumps(source)}], ["1"])
    for given in ("", "[]", json.dumps({**source, "index": 4}), json.dumps({**source, "seed": "0"})):
        with pytest.raises(ValueError, match="column `reasoning_gym` has"):
            scored([{**row, "reasoning_gym": given}], ["1"])
