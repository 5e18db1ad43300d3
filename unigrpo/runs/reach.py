"""What a recipe runs or reaches beside reading its files and writing its ``output_dir``."""

from __future__ import annotations

import inspect
import json
import re
from contextlib import suppress
from typing import Any

from ..config.arguments import PART_KEYS
from ..models.builtin import BUILTIN
from ..parts import plain
from ..rewards import REWARDS, get_reward
from ..rollout.reward_values import shortened
from .bounded_yaml import quoted
from .recipe import Recipe


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
        for key in PART_KEYS if isinstance(values, dict) else ():
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


SERVICES = {"judge": "base_url", "remote": "url"}
"""Rewards that send rows to a service, and their argument with its URL."""

RUNS_ANSWERS = ("code_tests", "reasoning_gym")
"""Rewards that run what an answer says, in a process without network and without files to write."""


def _masked(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments to be shown: what is named like a secret is not."""
    secret = re.compile("key|token|secret|password|auth", re.IGNORECASE)
    return {name: "***" if secret.search(str(name)) else value for name, value in arguments.items()}


def _service(name: str, arguments: dict[str, Any]) -> str:
    """Where a reward of ``SERVICES`` sends its rows and where its key comes from, without what may be a secret."""
    taken = inspect.signature(get_reward(REWARDS[name])).parameters
    url, variable = (arguments.get(key, taken[key].default) for key in (SERVICES[name], "api_key_env"))
    if url is inspect.Parameter.empty:
        url = "no URL"
    place, asked, _ = str(url).partition("?")
    place = re.sub("//.*@", "//***@", place, flags=re.DOTALL) + ("?***" if asked else "")
    if variable is not None:
        # A key itself, given by mistake, has other characters.
        variable = variable if re.fullmatch("[A-Z_][A-Z0-9_]*", str(variable)) else "***"
    place = place if place.isprintable() else repr(place)
    return f"{shortened(place)} ({name}), {f'key from {variable}' if variable else 'no key'}"


def code_of(recipe: Recipe) -> list[str]:
    """What a recipe runs or reaches beside reading its files and writing its ``output_dir``, one a line.

    Nothing that it names is imported to find out.
    """
    lines = []
    measures = [own["name"] if isinstance(own, dict) else own for own in recipe.accuracy.values()]
    for path in (recipe.policy, *measures, *(path for _, path in part_paths(recipe))):
        if path and _is_code(path):
            lines.append(f"runs code: {path}")
    for reward in recipe.rewards:
        for name in SERVICES:
            if reward.name in (name, REWARDS[name]):
                lines.append(f"asks a service: {_service(name, reward.args)}")
        for name in RUNS_ANSWERS:
            if reward.name in (name, REWARDS[name]):
                lines.append(f"runs code of answers and datasets, guarded: {name}")
        if _is_code(reward.name):
            given = f" with args {quoted(_masked(reward.args))}" if reward.args else ""
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
        if value not in (None, False, "none", [], {}):
            lines.append(f"leads out of output_dir: {key}={quoted(value)}")
    return lines
