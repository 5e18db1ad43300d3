"""The rewards that a server has, from a recipe or from a file with nothing but rewards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ...config.checks import check_bound
from ...errors import RecipeError
from ...rollout.model_reward import ModelReward
from ...rollout.rewards import resolve_reward, reward_name, unique_names
from ..allowed_hosts import read_hosts
from ..build import build_rewards
from ..recipe import CONFIG_KEYS, SECTIONS, ModelSpec, Recipe, RewardSpec, check_rewards, known, sections
from ..recipe_file import read_recipe


def load_served(path: str | Path, overrides: list[str]) -> Recipe:
    """The part of a recipe that a server reads: ``rewards``, ``reward_timeout`` and, of the command line, ``allow_hosts``.

    The other keys of a recipe may be there, so that a run's own recipe will do, and are not read.

    Raises:
        RecipeError: a file that is missing or no recipe, an unknown key, no rewards.
    """
    data, source, folder = read_recipe(path, overrides)
    for key in data:
        known(key, (*SECTIONS, *CONFIG_KEYS), source)
    if not data.get("rewards"):
        raise RecipeError(
            f"{source}: 'rewards' is missing: a server needs a list of them, such as [{{name: clip_score}}]"
        )
    timeout = data.get("reward_timeout", 600.0)
    try:
        check_bound("reward_timeout", timeout)
    except ValueError as error:
        raise RecipeError(f"{source}: {error}") from None
    recipe = Recipe(
        source=source,
        model=ModelSpec(path=""),
        datasets=[],
        accuracy={},
        rewards=sections(RewardSpec, data["rewards"], f"{source}: rewards"),
        config={"reward_timeout": timeout},
        folder=folder,
        allow_hosts=read_hosts(data.get("allow_hosts") or []),
    )
    check_rewards(recipe.rewards, source)
    return recipe


def served_rewards(recipe: Recipe) -> dict[str, Callable]:
    """The rewards by the names that a run gives them; models behind a path are where there is a GPU on it.

    Raises:
        RecipeError: a reward that cannot be made.
    """
    functions = [resolve_reward(own) for own in build_rewards(recipe)]
    for reward in (getattr(own, "reward", own) for own in functions):
        if isinstance(reward, ModelReward) and torch.cuda.is_available():
            reward.to("cuda")
    return dict(zip(unique_names([reward_name(own) for own in functions]), functions, strict=True))
