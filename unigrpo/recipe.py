"""Recipes: one YAML file describes a run, strictly. Unknown keys are errors that name the nearest valid one."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from peft import LoraConfig

from .config import UniGRPOConfig
from .settings import CHOICES
from .types import TASKS


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the key, the value and the cure."""


class _Loader(yaml.SafeLoader):
    """Safe YAML with three surprises removed: ``5e-6`` is a number, ``no`` is a word, a key written twice is an error."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise RecipeError(f"key {key!r} is given twice (line {key_node.start_mark.line + 1})")
            seen.add(key)
        return super().construct_mapping(node, deep)


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def parse_yaml(text: str, where: str) -> Any:
    """Safe YAML.

    Raises:
        RecipeError: text that is not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not valid YAML: {error}") from error


@dataclass(slots=True, kw_only=True)
class ModelSpec:
    """``path`` is a hub id, a folder or ``builtin:NAME``; ``think_prompt`` as in ``MMaDAProcessor``.

    ``load_in_8bit`` or ``load_in_4bit`` quantise the base weights under ``lora``; the last two keys are read with 4 bits.
    """

    path: str
    dtype: str = "auto"
    revision: str | None = None
    device_map: str | dict | None = None
    think_prompt: bool | str | None = None
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    bnb_4bit_quant_type: str = "nf4"
    use_bnb_nested_quant: bool = False


@dataclass(slots=True, kw_only=True)
class DatasetSpec:
    """``path`` is a hub id, a ``.jsonl``/``.json``/``.parquet`` file, a ``.txt`` file of one prompt a line or
    ``builtin:NAME``.

    ``column_map`` is ``{our column: theirs}``, ``limit`` keeps the first rows, ``prompt`` is one prompt for all rows,
    ``image_transform`` is how pictures get the model's size: ``squash``, ``crop`` or ``pad``.
    """

    path: str
    name: str | None = None
    split: str = "train"
    task: str | None = None
    column_map: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    prompt: str | None = None
    image_transform: str | None = None


@dataclass(slots=True, kw_only=True)
class RewardSpec:
    """``name`` is a registry name, ``pkg.mod:attr`` or a model path; ``task`` limits it to rows of one task."""

    name: str
    weight: float = 1.0
    task: str | None = None
    args: dict[str, Any] = field(default_factory=dict)


ACCURACY = {"text": "unigrpo.accuracy:integer_match", "mmu": "unigrpo.accuracy:answer_match"}
"""How held-out answers of a task are judged unless the recipe says otherwise; pictures have no measure of their own."""


@dataclass(slots=True, kw_only=True)
class Recipe:
    """A parsed recipe. ``config`` holds the flat ``UniGRPOConfig`` keys; ``accuracy`` names each task's measure."""

    source: str
    model: ModelSpec
    datasets: list[DatasetSpec]
    rewards: list[RewardSpec]
    policy: str | None = None
    eval_datasets: list[DatasetSpec] = field(default_factory=list)
    sft_datasets: list[DatasetSpec] = field(default_factory=list)
    accuracy: dict[str, str] = field(default_factory=lambda: dict(ACCURACY))
    lora: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)


FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "weight": (int, float),
    "limit": (int, type(None)),
    "column_map": (dict,),
    "args": (dict,),
    "device_map": (str, dict, type(None)),
    "think_prompt": (bool, str, type(None)),
    "load_in_8bit": (bool,),
    "load_in_4bit": (bool,),
    "bnb_4bit_quant_type": (str,),
    "use_bnb_nested_quant": (bool,),
}
"""Types of the specs' fields; the others are text or null."""

SECTIONS = ("model", "policy", "datasets", "eval_datasets", "sft_datasets", "accuracy", "rewards", "lora")
CONFIG_KEYS = tuple(item.name for item in fields(UniGRPOConfig) if item.init)
LORA_KEYS = tuple(item.name for item in fields(LoraConfig) if item.init)


def load_recipe(path: str, overrides: list[str] | None = None) -> Recipe:
    """A recipe file with ``key=value`` overrides (dotted keys, YAML values).

    Raises:
        RecipeError: a file that is missing or not YAML, an unknown key, a wrong type.
    """
    file = Path(path)
    if not file.is_file():
        raise RecipeError(f"recipe {path!r} is not a file")
    data = parse_yaml(file.read_text(encoding="utf-8"), path)
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, got {type(data).__name__}")
    for override in overrides or []:
        _override(data, override)
    return parse_recipe(data, path)


def parse_recipe(data: dict[str, Any], source: str) -> Recipe:
    """A recipe from its mapping."""
    for key in data:
        _known(key, (*SECTIONS, *CONFIG_KEYS), source)
    for key in ("model", "datasets", "rewards"):
        if not data.get(key):
            raise RecipeError(f"{source}: '{key}' is missing; every recipe needs model, datasets and rewards")
    recipe = Recipe(
        source=source,
        model=_section(ModelSpec, data["model"], f"{source}: model"),
        policy=data.get("policy"),
        datasets=_sections(DatasetSpec, data["datasets"], f"{source}: datasets"),
        eval_datasets=_sections(DatasetSpec, data.get("eval_datasets") or [], f"{source}: eval_datasets"),
        sft_datasets=_sections(DatasetSpec, data.get("sft_datasets") or [], f"{source}: sft_datasets"),
        rewards=_sections(RewardSpec, data["rewards"], f"{source}: rewards"),
        accuracy=_accuracy(data.get("accuracy"), source),
        lora=data.get("lora") or None,
        config={key: value for key, value in data.items() if key not in SECTIONS},
    )
    if recipe.lora is not None:
        if not isinstance(recipe.lora, dict):
            raise RecipeError(f"{source}: lora must be a mapping of LoraConfig keys, or null, got {recipe.lora!r}")
        for key in recipe.lora:
            _known(key, LORA_KEYS, f"{source}: lora")
    for spec in (*recipe.datasets, *recipe.eval_datasets, *recipe.sft_datasets):
        if spec.image_transform is not None and spec.image_transform not in CHOICES["image_transform"]:
            raise RecipeError(
                f"{source}: image_transform={spec.image_transform!r}: choose one of {list(CHOICES['image_transform'])}"
            )
    for spec in (*recipe.datasets, *recipe.eval_datasets, *recipe.sft_datasets, *recipe.rewards):
        if spec.task is not None and spec.task not in TASKS:
            raise RecipeError(f"{source}: task={spec.task!r}: choose one of {list(TASKS)}")
    return recipe


def _accuracy(given: Any, source: str) -> dict[str, str]:
    """Measures by task: one path for the text tasks, or a mapping of tasks to paths, over the defaults."""
    if isinstance(given, str):
        given = {"text": given, "mmu": given}
    for task, path in (given or {}).items():
        _known(task, TASKS, f"{source}: accuracy")
        if not isinstance(path, str):
            raise RecipeError(f"{source}: accuracy.{task}={path!r} must be a 'pkg.mod:attr' path")
    return {**ACCURACY, **(given or {})}


def _known(key: str, valid: tuple[str, ...], where: str) -> None:
    if key in valid:
        return
    near = difflib.get_close_matches(str(key), valid, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; valid keys are {sorted(valid)}"
    raise RecipeError(f"{where}: unknown key {key!r}{hint}")


def _section(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise RecipeError(f"{where} must be a mapping with keys {[f.name for f in fields(kind)]}, got {value!r}")
    for key in value:
        _known(key, tuple(item.name for item in fields(kind)), where)
    for key, item in value.items():
        types = FIELD_TYPES.get(key, (str, type(None)))
        if not isinstance(item, types) or (isinstance(item, bool) and bool not in types):
            raise RecipeError(f"{where}.{key}={item!r} must be of type {' or '.join(t.__name__ for t in types)}")
    required = "name" if kind is RewardSpec else "path"
    if not isinstance(value.get(required), str):
        raise RecipeError(f"{where}: '{required}' must be a string, got {value.get(required)!r}")
    return kind(**value)


def _sections(kind: type, values: Any, where: str) -> list[Any]:
    if not isinstance(values, list):
        raise RecipeError(f"{where} must be a list, got {values!r}")
    return [_section(kind, value, f"{where}[{index}]") for index, value in enumerate(values)]


def _override(data: dict[str, Any], override: str) -> None:
    """Sets ``a.b.0.c=value`` in place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r} is not of the form key=value")
    value = parse_yaml(text, f"override {key}")
    *parents, last = key.split(".")
    node: Any = data
    for part in parents:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = node[_place(node, part, override)]
    node[_place(node, last, override)] = value


def _place(node: Any, part: str, override: str) -> Any:
    if isinstance(node, dict):
        return part
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return int(part)
    raise RecipeError(f"override {override!r}: {part!r} is not a place in the recipe")
