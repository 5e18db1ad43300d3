"""What a recipe runs or reaches beside reading its files and writing its ``output_dir``."""

from __future__ import annotations

import inspect
import json
import os
import re
from contextlib import suppress
from typing import Any

from ..config.arguments import PART_KEYS
from ..data.files import READERS, kind_of
from ..models.builtin import BUILTIN
from ..models.hub import looks_local
from ..parts import plain
from ..rewards import REWARDS, get_reward
from ..rollout.reward_values import shortened
from ..terminal import masked
from .bounded_yaml import quoted
from .dataset_spec import DatasetSpec
from .recipe import Recipe
from .recipe_file import FILE_KEYS


def part_paths(recipe: Recipe) -> list[tuple[str, str]]:
    """The parts of a recipe that are named by ``pkg.mod:attr``: key and path."""
    found = []
    overrides = recipe.config.get("task_overrides")
    # JSON is read as it will be read; what is none is refused there.
    with suppress(ValueError):
        overrides = json.loads(overrides) if isinstance(overrides, str) else overrides
    overrides = overrides if isinstance(overrides, dict) else {}
    for prefix, values in [
        ("", recipe.config),
        *((f"task_overrides.{task}.", own) for task, own in overrides.items()),
    ]:
        for key in (*PART_KEYS, "objective") if isinstance(values, dict) else ():
            own = values.get(key)
            with suppress(ValueError):
                own = plain(key, own)
            name = own.get("name") if isinstance(own, dict) else own
            if isinstance(name, str) and _is_code(name):
                found.append((f"{prefix}{key}", name))
    return found


def _is_code(path: str) -> bool:
    return ":" in path and not path.startswith(BUILTIN)


LEADS_OUT = (
    "report_to", "push_to_hub", "hub_model_id", "logging_dir", "resume_from_checkpoint", "deepspeed", "fsdp_config",
    "accelerator_config", "parallelism_config", "torch_compile_backend",
)  # fmt: skip
"""Keys of a run that send something away, or read and write elsewhere, or choose who compiles code."""


SERVICES = {
    **dict.fromkeys(("judge", "pairwise_judge", "reward_model_server", "soft_tifa", "vqa_score"), "base_url"),
    "remote": "url",
}
"""Rewards that send rows to a service, and their argument with its URL."""

RUNS_ANSWERS = ("code_tests", "reasoning_gym")
"""Rewards that run what an answer says, in a process without network and without files to write."""


def _service(name: str, arguments: dict[str, Any]) -> str:
    """Where a reward of ``SERVICES`` sends its rows and where its key comes from, without what may be a secret."""
    kind = get_reward(REWARDS[name])
    url, variable = (arguments.get(key, _default(kind, key)) for key in (SERVICES[name], "api_key_env"))
    if url is inspect.Parameter.empty:
        url = "no URL"
    place, asked, _ = str(url).partition("?")
    place = re.sub("//.*@", "//***@", place, flags=re.DOTALL) + ("?***" if asked else "")
    if variable is not None:
        # A key itself, given by mistake, has other characters.
        variable = variable if re.fullmatch("[A-Z_][A-Z0-9_]*", str(variable)) else "***"
    place = place if place.isprintable() else repr(place)
    return f"{shortened(place)} ({name}), {f'key from {variable}' if variable else 'no key'}"


def _code_in(name: str, arguments: dict[str, Any]) -> list[str]:
    """The arguments of a registered reward that name code."""
    path = REWARDS.get(name, name)
    if path not in REWARDS.values() or not any(isinstance(own, str) and _is_code(own) for own in arguments.values()):
        return []
    named = (arguments.get(key) for key in getattr(get_reward(path), "NAMES_CODE", ()))
    return [own for own in named if isinstance(own, str)]


def _default(kind: type, argument: str) -> Any:
    """Of an argument that a class takes, or hands on to one that it is derived from."""
    signatures = (inspect.signature(own.__init__).parameters for own in kind.__mro__)
    return next(own[argument].default for own in signatures if argument in own)


def code_of(recipe: Recipe) -> list[str]:
    """What a recipe runs or reaches beside reading its files and writing its ``output_dir``, one a line.

    Nothing that it names is imported to find out.
    """
    lines = []
    measures = [own["name"] if isinstance(own, dict) else own for own in recipe.accuracy.values()]
    for path in (recipe.policy, *measures, *(path for _, path in part_paths(recipe))):
        if path and _is_code(path):
            lines.append(f"runs code: {path}")
    judging = [own for own in recipe.accuracy.values() if isinstance(own, dict)]
    asked = [(own["name"], own) for own in judging] + [(reward.name, reward.args) for reward in recipe.rewards]
    for given, arguments in asked:
        for name in [own for own in SERVICES if given in (own, REWARDS[own])]:
            lines.append(f"asks a service: {_service(name, arguments)}")
            if arguments.get("cache_file") is not None:
                lines.append(f"leads out of output_dir: cache_file={quoted(arguments['cache_file'])} ({name})")
        lines += [f"runs code: {path} ({given})" for path in _code_in(given, arguments)]
    for reward in recipe.rewards:
        for name in RUNS_ANSWERS:
            if reward.name in (name, REWARDS[name]):
                lines.append(f"runs code of answers and datasets, guarded: {name}")
        if _is_code(reward.name):
            given = f" with args {quoted(masked(reward.args))}" if reward.args else ""
            lines.append(f"runs code: {reward.name}{given}")
    lines = list(dict.fromkeys(lines))
    options = recipe.config.get("model_init_kwargs")
    options = options if isinstance(options, dict) else {}
    if options.get("trust_remote_code"):
        lines.append(f"runs code: whatever lies in {recipe.model.path} (model_init_kwargs.trust_remote_code)")
    attention = str(options.get("attn_implementation") or "")
    if "/" in attention:
        lines.append(f"runs code: the kernel {quoted(attention)} from the hub (model_init_kwargs.attn_implementation)")
    if recipe.lora and recipe.lora.get("megatron_config") is not None:
        lines.append(f"runs code: {recipe.lora.get('megatron_core', 'megatron.core')} (lora.megatron_config)")
    for key in LEADS_OUT:
        value = recipe.config.get(key)
        beside = key == "resume_from_checkpoint" and value is True
        if value not in (None, False, "none", [], {}) and not beside:
            lines.append(f"leads out of output_dir: {key}={quoted(value)}")
    return lines


MODELS = ("model", "tokenizer", "processor", "clip")
"""Arguments of a reward that name what is loaded."""


def sources_of(recipe: Recipe) -> list[str]:
    """The ids of the hub that a recipe asks for and the local files that it reads, one a line; nothing is opened.

    What its model's own configuration names further, such as an image tokenizer, is not known here.
    """
    named = [(recipe.model.path, "model"), (recipe.config.get("image_tokenizer"), "image_tokenizer")]
    for section in ("datasets", "eval_datasets", "sft_datasets"):
        named += [(path, section) for spec in getattr(recipe, section) for path in _paths_of(spec)]
    for reward in recipe.rewards:
        if "/" in reward.name and ":" not in reward.name:
            named.append((reward.name, "rewards"))
        elif reward.name in REWARDS and reward.name not in SERVICES:
            named += [(path, reward.name) for path in _loaded_by(reward.name, reward.args)]
    files = [(recipe.config.get(key), key) for key in FILE_KEYS if key != "image_tokenizer"]
    uses: dict[str, list[str]] = {}
    for path, use in [*named, *files]:
        if (
            isinstance(path, str)
            and path
            and not path.startswith(BUILTIN)
            and not (use in FILE_KEYS and path[0] == "{")
        ):
            kind = "reads" if use in FILE_KEYS[1:] or _is_local(path) else "asks the hub for"
            uses.setdefault(f"{kind}: {quoted(path)[1:-1]}", []).append(use)
    return [f"{line} ({', '.join(dict.fromkeys(own))})" for line, own in uses.items()]


def _loaded_by(name: str, arguments: dict[str, Any]) -> list[Any]:
    """What a registered reward loads, given or by default."""
    taken = inspect.signature(get_reward(REWARDS[name])).parameters
    return [arguments.get(key, taken[key].default) for key in MODELS if key in taken]


def _paths_of(spec: DatasetSpec) -> list[str]:
    """What a dataset reads; files of an id of the hub are part of the id."""
    paths = [spec.path] if isinstance(spec.path, str) else list(spec.path)
    if spec.data_files is not None and spec.path in READERS:
        paths = [spec.data_files] if isinstance(spec.data_files, str) else list(spec.data_files)
    return [*paths, *([spec.image_folder] if spec.image_folder else [])]


def _is_local(path: str) -> bool:
    try:
        return looks_local(path) or kind_of(path) is not None or os.path.exists(path)
    except (OSError, ValueError):
        return False


def told_before(recipe: Recipe) -> list[str]:
    """What a user is told before a run: where it writes, and all that it reaches beside what ships with the package."""
    own = [line for line in code_of(recipe) if not line.startswith("runs code: unigrpo.")]
    lines = [*own, *sources_of(recipe)] or ["reaches nothing that does not ship with the package"]
    return [
        f"{recipe.source}:",
        f"  writes: {recipe.config.get('output_dir', 'unigrpo-output')}",
        *(f"  {line}" for line in lines),
    ]
