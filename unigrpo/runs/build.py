"""From a parsed recipe to what a run needs: arguments, adapter, rewards and datasets."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from peft import LoraConfig
from torch.utils.data import ConcatDataset
from transformers import BitsAndBytesConfig

from ..algorithm.combining import Combination, read_terms
from ..config.arguments import UniGRPOConfig
from ..errors import RecipeError, ReturnError
from ..models import DiffusionPolicy, resolve_policy
from ..models.adapters import check_adapter
from ..models.builtin import model_path
from ..models.loading import check_from_scratch
from ..models.quantization import quantization_config
from ..parts import import_part
from ..rewards import get_reward
from ..rewards._service import ServiceReward
from ..rollout.reward_arguments import taken
from ..rollout.reward_values import as_list
from ..rollout.rewards import resolve_reward, reward_name, unique_names
from .dataset_spec import DatasetSpec, prompt_rows
from .reach import part_paths
from .recipe import Recipe


def build_config(recipe: Recipe) -> UniGRPOConfig:
    """The run's arguments. Reward weights and terms come from the rewards.

    Parts of the user's own are looked for beside the recipe first.

    Raises:
        RecipeError: what ``UniGRPOConfig`` refuses, with the recipe's name.
    """
    values = {"report_to": "none", **recipe.config}
    if values.get("reward_weights") is not None:
        raise RecipeError(f"{recipe.source}: reward_weights belongs to the rewards: give each a 'weight'")
    if values.get("reward_terms") is not None:
        raise RecipeError(f"{recipe.source}: reward_terms belongs to the rewards: give each its gate, clip, ...")
    values["reward_weights"] = [float(reward.weight) for reward in recipe.rewards]
    terms = [reward.term() for reward in recipe.rewards]
    values["reward_terms"] = terms if any(terms) else None
    try:
        import_parts(recipe)
        return UniGRPOConfig(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"{recipe.source}: {str(error).strip()}") from error


def import_parts(recipe: Recipe) -> None:
    """Imports the recipe's own code, which is looked for beside it first.

    Raises:
        ValueError: a path that leads nowhere.
    """
    for where, path in part_paths(recipe):
        try:
            import_part(path, [recipe.folder])
        except (ImportError, ValueError) as error:
            raise ValueError(f"{where}={path!r} cannot be imported: {error}") from error


def build_lora(recipe: Recipe) -> LoraConfig | None:
    """The adapter of the recipe."""
    if recipe.lora is None:
        return None
    try:
        config = LoraConfig(**recipe.lora)
        check_adapter(config)
        return config
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{recipe.source}: lora: {error}") from error


def build_quantization(recipe: Recipe) -> BitsAndBytesConfig | None:
    """How the recipe's base weights are quantised.

    Raises:
        RecipeError: keys that do not go together, of ``from_scratch`` too, or a package that is missing.
    """
    spec = recipe.model
    about_weights = {
        "from_scratch": spec.from_scratch,
        "quantization_config": spec.load_in_8bit or spec.load_in_4bit,
        "device_map": spec.device_map,
    }
    try:
        check_from_scratch(about_weights, recipe.lora is not None)
        return quantization_config(
            spec.load_in_8bit, spec.load_in_4bit, spec.bnb_4bit_quant_type, spec.use_bnb_nested_quant
        )
    except ValueError as error:
        raise RecipeError(f"{recipe.source}: model: {error}") from error


class ForTask:
    """A reward that applies to rows of one task only; other rows get None.

    Raises:
        ReturnError: the reward returned something else than one score for each of its rows.
    """

    def __init__(self, reward: Any, task: str) -> None:
        self.reward, self.task, self.__name__ = reward, task, reward_name(reward)

    def __call__(self, *, task: list[str], **columns: Any) -> Any:
        mine = [index for index, own in enumerate(task) if own == self.task]
        if not mine:
            return [None] * len(task)
        part = {
            key: [value[i] for i in mine] if isinstance(value, list) and len(value) == len(task) else value
            for key, value in columns.items()
        }

        def spread(values: Any) -> list:
            """Values of this task's rows at their places, None elsewhere."""
            values = as_list(values, len(mine), f" for the rows of task {self.task!r}")
            placed = dict(zip(mine, values, strict=True))
            return [placed.get(index) for index in range(len(task))]

        if "log_extra" in part:
            log_extra = part["log_extra"]

            def log_of_rows(column: str, values: Any) -> None:
                try:
                    values = spread(values)
                except ReturnError:
                    values = None  # Refused there, by the same rules as anyone's.
                log_extra(column, values)

            part["log_extra"] = log_of_rows
        result = self.reward(**taken(self.reward, {"task": [self.task] * len(mine), **part}))

        async def spread_later() -> list[float | None]:
            return spread(await result)

        return spread_later() if inspect.isawaitable(result) else spread(result)


def build_policy(recipe: Recipe) -> type[DiffusionPolicy] | None:
    """The policy class that the recipe names; None = found from the model."""
    return None if recipe.policy is None else resolve_policy(recipe.policy, [recipe.folder])


def build_accuracy(recipe: Recipe) -> dict[str, Callable[[str, str], bool]]:
    """``f(completion, solution) -> bool`` of each task whose held-out answers are judged."""
    built = {}
    for task, given in recipe.accuracy.items():
        own = dict(given) if isinstance(given, dict) else {"name": given}
        try:
            built[task] = _reward(recipe, own.pop("name"), own)
        except (ValueError, TypeError) as error:
            raise RecipeError(f"{recipe.source}: accuracy.{task}: {error}") from error
    return built


def _reward(recipe: Recipe, name: str, options: dict[str, Any]) -> Any:
    """The reward of that name; the key of a service goes only where the command line lets it.

    Raises:
        ValueError: a name that leads nowhere, or a key that would go elsewhere.
    """
    reward = get_reward(name, [recipe.folder], **options)
    if isinstance(reward, ServiceReward):
        reward.key_hosts = frozenset(recipe.allow_hosts)
        reward.check_key()
    return reward


def build_rewards(recipe: Recipe) -> list[Any]:
    """Callables, or model paths for the trainer to load.

    Raises:
        ValueError: a name that leads nowhere, arguments that the reward does not take, a package or system that it lacks, or a
            gate that is no other reward.
    """
    built = []
    for number, spec in enumerate(recipe.rewards):
        is_model = "/" in spec.name and ":" not in spec.name
        options = {key: model_path(value) if isinstance(value, str) else value for key, value in spec.args.items()}
        try:
            reward = spec.name if is_model else _reward(recipe, spec.name, options)
        except (ValueError, ImportError, RuntimeError) as error:
            raise RecipeError(f"{recipe.source}: rewards[{number}]: {error}") from error
        except TypeError as error:
            raise RecipeError(f"{recipe.source}: rewards: args of {spec.name!r}: {error}") from error
        if spec.task is not None:
            reward = ForTask(resolve_reward(reward), spec.task)
        built.append(reward)
    _check_gates(recipe, built)
    return built


def _check_gates(recipe: Recipe, built: list[Any]) -> None:
    """Raises ``RecipeError`` for a gate that is no other reward of the recipe; no model is loaded to find out."""
    names = [own.rsplit("/", 1)[-1] if isinstance(own, str) else reward_name(own) for own in built]
    try:
        Combination(unique_names(names), read_terms([spec.term() for spec in recipe.rewards]))
    except ValueError as error:
        raise RecipeError(f"{recipe.source}: rewards: {error}") from error


def dataset_names(recipe: Recipe) -> dict[str, list[str]]:
    """The paths of a recipe's datasets, by what they are used for."""
    used = {"trained on": recipe.datasets, "given answers": recipe.sft_datasets, "held out": recipe.eval_datasets}
    named = {use: [path for spec in specs for path in spec.paths] for use, specs in used.items() if specs}
    return {use: list(dict.fromkeys(paths)) for use, paths in named.items()}


def build_dataset(specs: list[DatasetSpec], given: bool = False) -> Any:
    """The rows of all ``specs``, one after the other; None for an empty list. ``given`` as in ``prompt_rows``.

    Raises:
        RecipeError: an unknown shipped set or a column that is not there.
    """
    parts = [prompt_rows(spec, given) for spec in specs]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else ConcatDataset(parts)


def resolve_names(recipe: Recipe) -> None:
    """Imports everything the recipe names.

    Raises:
        ValueError: a name that leads nowhere.
    """
    build_policy(recipe)
    build_rewards(recipe)
    build_accuracy(recipe)
