"""``unigrpo check``: what can go wrong with a recipe before any GPU time is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from .algorithms import build_algorithms, check_task_sampler
from .data import check_dataset, task_of
from .generation import BUILTIN, model_path
from .recipe import (
    FILE_KINDS,
    DatasetSpec,
    Recipe,
    RecipeError,
    build_config,
    build_lora,
    build_rewards,
    import_paths,
    load_rows,
    resolve_names,
)
from .rewarding import Answer, RewardSet, resolve_reward


GOLD_ROWS = 64

VERIFIERS = ("math_correctness", "think_format", "answer_correctness")
"""Rewards that give a perfect text answer 1.0."""


class NotReachable(RecipeError):
    """A hub id that cannot be fetched from here."""


def check_recipe(recipe: Recipe, offline: bool = False) -> list[str]:
    """Findings, one a line, for a recipe that is fit to run.

    Args:
        offline: accept hub ids that cannot be reached; what depends on them is reported as not checked.

    Raises:
        ValueError: anything that would fail later: a bad value, an unknown name, gold answers that do not score 1.0, a
            hub id that cannot be reached without ``offline``.
    """
    args = build_config(recipe)
    build_algorithms(args)
    build_lora(recipe)
    resolve_names(recipe)
    notes = [f"runs code: {path}" for path in import_paths(recipe)]
    notes += _check_model(recipe, offline)
    if args.image_tokenizer is not None:
        _is_local(model_path(args.image_tokenizer), "image_tokenizer")
    for spec in recipe.datasets:
        notes += _check_data(recipe, spec, offline, gold=True)
    for spec in recipe.eval_datasets:
        notes += _check_data(recipe, spec, offline, gold=False)
    return notes


def _reach(what: str, fetch: Any, offline: bool) -> tuple[Any, list[str]]:
    try:
        return fetch(), []
    except OSError as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if not offline:
            raise NotReachable(f"{what} is not reachable ({reason}); check the id, or pass --offline") from error
        return None, [f"{what}: not reachable, not checked"]


def _check_model(recipe: Recipe, offline: bool) -> list[str]:
    path = model_path(recipe.model.path)
    if _is_local(path):
        config = AutoConfig.from_pretrained(path)
        return [f"model {recipe.model.path}: {config.model_type}"]
    config, notes = _reach(f"model {path}", lambda: AutoConfig.from_pretrained(path), offline)
    return notes or [f"model {path}: {config.model_type}"]


def _is_local(path: str, what: str = "model path") -> bool:
    """A path is local when it looks like one, so that a typing error is not taken for a hub id."""
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).exists()
    if looks_local and not Path(path).expanduser().exists():
        raise RecipeError(f"{what} {path!r} does not exist")
    return looks_local


def _check_data(recipe: Recipe, spec: DatasetSpec, offline: bool, gold: bool) -> list[str]:
    notes: list[str] = []
    if not spec.path.startswith(BUILTIN) and Path(spec.path).suffix not in FILE_KINDS:
        rows, notes = _reach(f"dataset {spec.path}", lambda: load_rows(spec), offline)
    else:
        rows = load_rows(spec)
    if rows is None:
        return notes
    args = build_config(recipe)
    check_dataset(
        rows, f"dataset {spec.path}", lambda row, where: check_task_sampler(args, task_of(row), where, not gold)
    )
    notes = [f"dataset {spec.path}: {len(rows)} rows, columns {rows.column_names}"]
    if gold and "solution" in rows.column_names:
        notes += _check_gold(recipe, rows, spec)
    return notes


def _check_gold(recipe: Recipe, rows: Any, spec: DatasetSpec) -> list[str]:
    """A perfect text answer must score 1.0 with every shipped verifier that applies to it."""
    own = [index for index, reward in enumerate(recipe.rewards) if reward.name in VERIFIERS]
    functions = [resolve_reward(build_rewards(recipe)[index]) for index in own]
    answers = []
    for index in range(min(GOLD_ROWS, len(rows))):
        row = rows[index]
        completion = f"<think>The worked solution.</think>{row['solution']}"
        answers.append(Answer(row=row, completion=completion, completion_ids=[], task=task_of(row)))
    tasks = {answer.task for answer in answers}
    mine = [i for i, index in enumerate(own) if recipe.rewards[index].task in {None, *tasks}]
    functions = [functions[i] for i in mine]
    if not functions or tasks == {"t2i"}:
        return [f"gold answers of {spec.path}: no shipped verifier to check them with"]
    rewards = RewardSet(functions=functions)
    scores = rewards.score(answers)
    for name, column in zip(rewards.names, scores.T.tolist(), strict=True):
        wrong = [i for i, score in enumerate(column) if score == score and score != 1.0]
        if wrong:
            raise RecipeError(
                f"{recipe.source}: the gold answer of {spec.path}[{wrong[0]}] scores {column[wrong[0]]} with {name!r}, "
                f"not 1.0: {str(rows[wrong[0]]['solution'])[:80]!r}. Does column_map.solution name the right column?"
            )
        if all(score != score for score in column):
            raise RecipeError(f"{recipe.source}: {name!r} scores no gold answer of {spec.path}: none can be parsed")
    return [f"gold answers of {len(answers)} rows score 1.0 with {rewards.names}"]
