"""Recipes: one YAML file describes a run, strictly. Unknown keys are errors that name the nearest valid one."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from peft import LoraConfig

from ..algorithm.combining import RewardTerm, read_terms
from ..config.arguments import UniGRPOConfig
from ..config.inherited import settle_fields
from ..config.trl_keys import cure_of
from ..data.pictures import TRANSFORMS
from ..errors import RecipeError
from ..parts import keys_of
from ..types import TASKS
from .allowed_hosts import read_hosts
from .bounded_yaml import quoted
from .dataset_spec import DatasetSpec
from .kinds import key_of_other, refuse_other
from .recipe_file import read_recipe


@dataclass(slots=True, kw_only=True)
class ModelSpec:
    """``path`` is a hub id, a folder or ``builtin:NAME``; ``think_prompt`` as in ``MMaDAProcessor``.

    ``from_scratch`` reads its configuration and tokenizer alone, and draws the weights from the run's ``seed``.
    ``load_in_8bit`` or ``load_in_4bit`` quantise the base weights under ``lora``; the last two keys are read with 4 bits.
    """

    path: str
    dtype: str = "auto"
    revision: str | None = None
    device_map: str | dict | None = None
    think_prompt: bool | str | None = None
    from_scratch: bool = False
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    bnb_4bit_quant_type: str = "nf4"
    use_bnb_nested_quant: bool = False


@dataclass(slots=True, kw_only=True)
class RewardSpec:
    """``name`` is a registry name, ``pkg.mod:attr`` or a model path; ``task`` limits it to rows of one task.

    The keys from ``gate`` on are those of ``RewardTerm``: how the reward enters the sum.
    """

    name: str
    weight: float = 1.0
    task: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    gate: str | None = None
    clip: list[float | None] | None = None
    standardise: bool = False
    win_rate: bool = False
    schedule: dict[str, Any] | None = None

    def term(self) -> dict[str, Any]:
        """The keys of ``RewardTerm`` that say something."""
        return {name: value for name in keys_of(RewardTerm) if (value := getattr(self, name)) not in (None, False)}


ACCURACY = {"text": "unigrpo.runs.accuracy:integer_match", "mmu": "unigrpo.runs.accuracy:answer_match"}
"""How held-out answers of a task are judged unless the recipe says otherwise; pictures have no measure of their own."""


@dataclass(slots=True, kw_only=True)
class Recipe:
    """A parsed recipe. ``config`` holds the flat keys of its config; ``accuracy`` names each task's measure. One for ``unigrpo sft``
    has no rewards.

    ``folder`` is where its file lies: the paths and the code that it names are looked for there first. ``allow_hosts`` are
    the hosts that may get a key, which only a command line can say; ``overrides`` is what it said. ``sampling`` says how a
    fine-tuned policy answers held-out rows.
    """

    source: str
    model: ModelSpec
    datasets: list[DatasetSpec]
    rewards: list[RewardSpec]
    policy: str | None = None
    eval_datasets: list[DatasetSpec] = field(default_factory=list)
    sft_datasets: list[DatasetSpec] = field(default_factory=list)
    accuracy: dict[str, Any] = field(default_factory=lambda: dict(ACCURACY))
    lora: dict[str, Any] | None = None
    sampling: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    allow_hosts: tuple[str, ...] = ()
    overrides: tuple[str, ...] = field(default=(), compare=False)

    @property
    def kind(self) -> str:
        """``"train"`` or ``"sft"``, the command that runs it."""
        return "train" if self.rewards else "sft"


FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "weight": (int, float),
    "args": (dict,),
    "clip": (list, type(None)),
    "standardise": (bool,),
    "win_rate": (bool,),
    "schedule": (dict, type(None)),
    "device_map": (str, dict, type(None)),
    "think_prompt": (bool, str, type(None)),
    "from_scratch": (bool,),
    "load_in_8bit": (bool,),
    "load_in_4bit": (bool,),
    "bnb_4bit_quant_type": (str,),
    "use_bnb_nested_quant": (bool,),
}
"""Types of the specs' fields; the others are text or null."""

SECTIONS = (
    "model",
    "policy",
    "datasets",
    "eval_datasets",
    "sft_datasets",
    "accuracy",
    "rewards",
    "lora",
    "allow_hosts",
)
CONFIG_KEYS = tuple(item.name for item in fields(UniGRPOConfig) if item.init)
LORA_KEYS = tuple(item.name for item in fields(LoraConfig) if item.init)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """A recipe with ``key=value`` overrides (dotted keys, YAML values).

    Args:
        path: a file, with or without ``.yaml``, else the name of a recipe that ships with the package.

    Raises:
        RecipeError: a file that is missing, no text or not YAML, an unknown key, a wrong type.
    """
    data, source, folder = read_recipe(path, overrides)
    return replace(parse_recipe(data, source, folder), overrides=tuple(overrides or ()))


def parse_recipe(data: dict[str, Any], source: str, folder: Path | None = None) -> Recipe:
    """A recipe from its mapping, read in ``folder``."""
    refuse_other(data, "train", source)
    for key in data:
        known(key, (*SECTIONS, *CONFIG_KEYS), source, key_of_other(key, "train"))
    for key in ("model", "datasets", "rewards"):
        if not data.get(key):
            raise RecipeError(
                f"{source}: '{key}' is missing; every recipe needs model, datasets and rewards (without rewards, `unigrpo sft`)"
            )
    recipe = Recipe(
        source=source,
        model=section(ModelSpec, data["model"], f"{source}: model"),
        policy=parse_policy(data.get("policy"), source),
        datasets=sections(DatasetSpec, data["datasets"], f"{source}: datasets"),
        eval_datasets=sections(DatasetSpec, data.get("eval_datasets") or [], f"{source}: eval_datasets"),
        sft_datasets=sections(DatasetSpec, data.get("sft_datasets") or [], f"{source}: sft_datasets"),
        rewards=sections(RewardSpec, data["rewards"], f"{source}: rewards"),
        accuracy=parse_accuracy(data.get("accuracy"), source),
        lora=parse_lora(data, source),
        config={key: value for key, value in data.items() if key not in SECTIONS},
        folder=folder or Path(),
        allow_hosts=read_hosts(data.get("allow_hosts") or []),
    )
    check_rewards(recipe.rewards, source)
    for spec in (*recipe.datasets, *recipe.eval_datasets, *recipe.sft_datasets):
        if spec.image_transform is not None and spec.image_transform not in TRANSFORMS:
            raise RecipeError(
                f"{source}: image_transform={quoted(spec.image_transform)}: choose one of {list(TRANSFORMS)}"
            )
    for spec in (*recipe.datasets, *recipe.eval_datasets, *recipe.sft_datasets):
        if spec.task is not None and spec.task not in TASKS:
            raise RecipeError(f"{source}: task={quoted(spec.task)}: choose one of {list(TASKS)}")
    return recipe


def check_rewards(rewards: list[RewardSpec], source: str) -> None:
    """Raises ``RecipeError`` for an unknown task, and for a reward that cannot enter the sum like that."""
    for spec in rewards:
        if spec.task is not None and spec.task not in TASKS:
            raise RecipeError(f"{source}: task={quoted(spec.task)}: choose one of {list(TASKS)}")
    try:
        read_terms([spec.term() for spec in rewards], "rewards")
    except ValueError as error:
        raise RecipeError(f"{source}: {error}") from error


def parse_lora(data: dict[str, Any], source: str) -> dict[str, Any] | None:
    """The recipe's ``lora``, typed; None for a whole model."""
    lora = data.get("lora") or None
    if lora is None:
        return None
    if not isinstance(lora, dict):
        raise RecipeError(f"{source}: lora must be a mapping of LoraConfig keys, or null, got {quoted(lora)}")
    for key in lora:
        known(key, LORA_KEYS, f"{source}: lora")
    try:
        return settle_fields(LoraConfig, lora, "lora.")
    except ValueError as error:
        raise RecipeError(f"{source}: {error}") from error


def parse_policy(given: Any, source: str) -> str | None:
    if given is None or isinstance(given, str):
        return given
    raise RecipeError(f"{source}: policy={quoted(given)} must be a name or a 'pkg.mod:attr' path")


def parse_accuracy(given: Any, source: str) -> dict[str, Any]:
    """Measures by task: one path for the text tasks, or a mapping of tasks to paths, over the defaults."""
    if isinstance(given, str) or (isinstance(given, dict) and "name" in given):
        given = {"text": given, "mmu": given}
    if not isinstance(given or {}, dict):
        raise RecipeError(f"{source}: accuracy={quoted(given)} must be a 'pkg.mod:attr' path, or one for each task")
    for task, path in (given or {}).items():
        known(task, TASKS, f"{source}: accuracy")
        if not isinstance(path.get("name") if isinstance(path, dict) else path, str):
            raise RecipeError(
                f"{source}: accuracy.{task}={quoted(path)} must be a 'pkg.mod:attr' path, or a mapping with a 'name' and keys"
            )
    return {**ACCURACY, **(given or {})}


def known(key: str, valid: tuple[str, ...], where: str, cure: str | None = None) -> None:
    """Raises ``RecipeError`` for a key that is not among ``valid``, with the ``cure`` that is given, or the nearest that is."""
    if key in valid:
        return
    near = difflib.get_close_matches(str(key)[:100], valid, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"valid keys are {sorted(valid)}"
    raise RecipeError(f"{where}: unknown key {quoted(key)}; {cure or cure_of(str(key)) or hint}")


def section(kind: type, value: Any, where: str) -> Any:
    """A ``kind`` from its mapping; ``RecipeError`` for keys that it does not have and values of a wrong type."""
    required = "name" if kind is RewardSpec else "path"
    if not isinstance(value, dict):
        cure = f"; write {{{required}: {json.dumps(value)}}}" if isinstance(value, str) and len(value) <= 100 else ""
        raise RecipeError(
            f"{where} must be a mapping with keys {[f.name for f in fields(kind)]}, got {quoted(value)}{cure}"
        )
    for key in value:
        known(key, tuple(item.name for item in fields(kind)), where)
    for key, item in value.items():
        types = {**FIELD_TYPES, **getattr(kind, "TYPES", {})}.get(key, (str, type(None)))
        if not isinstance(item, types) or (isinstance(item, bool) and bool not in types):
            raise RecipeError(f"{where}.{key}={quoted(item)} must be of type {' or '.join(t.__name__ for t in types)}")
    if value.get(required) is None:
        raise RecipeError(f"{where}: '{required}' must be a string, got None")
    for key in ("column_map", "args", "path"):
        if isinstance(value.get(key), dict | list):
            _check_words(value[key], key == "column_map", f"{where}.{key}")
    return kind(**value)


def _check_words(mapping: dict | list, values_too: bool, where: str) -> None:
    wrong = [item for item in mapping if not isinstance(item, str)]
    values = mapping.values() if isinstance(mapping, dict) and values_too else ()
    wrong += [item for item in values if not isinstance(item, str)]
    if wrong:
        raise RecipeError(f"{where}: {quoted(wrong[0])} must be text")


def sections(kind: type, values: Any, where: str) -> list[Any]:
    if not isinstance(values, list):
        raise RecipeError(f"{where} must be a list, got {quoted(values)}")
    return [section(kind, value, f"{where}[{index}]") for index, value in enumerate(values)]
