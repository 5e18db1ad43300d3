"""Are the solutions of a dataset what its rewards can read, and right by their own account?"""

from __future__ import annotations

from typing import Any

from ..data.rows import task_of
from ..errors import RecipeError
from ..rewards._answers import gold_answer
from ..rollout.rewards import RewardSet, resolve_reward
from ..types import Sample, is_picture, spans_of
from .build import build_rewards
from .dataset_spec import DatasetSpec
from .recipe import Recipe


GOLD_ROWS = 64
"""Rows of a dataset that are looked at, from the first on."""

VERIFIERS = ("math_correctness", "think_format", "answer_correctness")
"""Rewards that give a perfect text answer 1.0."""


def check_golds(recipe: Recipe, rows: Any, spec: DatasetSpec) -> list[str]:
    """Findings on the column ``solution``: a perfect text answer scores 1.0 with every shipped verifier that applies to it.

    Raises:
        RecipeError: one scores less, or a verifier can read none.
    """
    answers = [_perfect(rows[index]) for index in range(min(GOLD_ROWS, len(rows)))]
    answers = [answer for answer in answers if not is_picture(spans_of(answer.task)[-1])]
    tasks = {answer.task for answer in answers}
    rewards = build_rewards(recipe)
    own = [i for i, reward in enumerate(recipe.rewards) if reward.name in VERIFIERS and reward.task in {None, *tasks}]
    if not own or not answers:
        return [f"gold answers of {spec.path}: no shipped verifier to check them with"]
    read = RewardSet(functions=[resolve_reward(rewards[index]) for index in own])
    scores = read.score(answers).values.T.tolist()
    notes = []
    for index, name, column in zip(own, read.names, scores, strict=True):
        notes += _findings(recipe, spec, name, recipe.rewards[index].task, answers, column)
    return notes or [f"gold answers of {len(answers)} rows score 1.0 with {read.names}"]


def _perfect(row: dict[str, Any]) -> Sample:
    """The answer that says what the row's solution says."""
    gold = gold_answer(row["solution"])
    said = str(row["solution"]) if gold is None else f"<answer>{gold}</answer>"
    return Sample(
        row=row, completion=f"<think>The worked solution.</think>{said}", completion_ids=[], task=task_of(row)
    )


def _findings(
    recipe: Recipe, spec: DatasetSpec, name: str, task: str | None, answers: list[Sample], scores: list[float]
) -> list[str]:
    asked = [i for i, answer in enumerate(answers) if task in (None, answer.task)]
    unread = [i for i in asked if scores[i] != scores[i]]
    wrong = [i for i in asked if scores[i] == scores[i] and scores[i] != 1.0]
    if wrong:
        raise RecipeError(
            f"{recipe.source}: the gold answer of {spec.path}[{wrong[0]}] scores {scores[wrong[0]]} with {name!r}, "
            f"not 1.0: {_shown(answers[wrong[0]])}. Does column_map.solution name the right column?"
        )
    if not unread:
        return []
    found = f"{len(unread)} of {len(asked)} cannot be read: {_shown(answers[unread[0]])}"
    if len(unread) == len(asked):
        raise RecipeError(
            f"{recipe.source}: {name!r} scores no gold answer of {spec.path}: {found}. Does column_map.solution name the "
            "right column?"
        )
    return [f"gold answers of {spec.path} with {name!r}: {found}; the other {len(asked) - len(unread)} score 1.0"]


def _shown(answer: Sample) -> str:
    return repr(str(answer.row["solution"])[:80])
