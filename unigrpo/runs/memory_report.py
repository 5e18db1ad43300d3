"""``unigrpo check --memory``: what a run holds on a card, line by line, and which keys to turn where it is too much."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..data.image_codes import sides
from .build import build_config
from .memory import Memory, memory_of
from .memory_sft import memory_of_sft
from .recipe import Recipe
from .sft import config_to_check


CHANGE_THE_RUN = ("lora", "lora.r", "image_size", "max_length")
"""Keys that are not about memory and speed alone, those of a task too."""


def memory_report(load: Callable[..., Recipe], card: float) -> tuple[list[str], bool]:
    """What a run holds on a card of that many GB, and where it is too much the keys to turn; whether it fits.

    ``load`` gives the recipe with some more overrides.
    """
    memory = memory_of_any(load())
    lines = [
        "memory by arithmetic, in GB of 10^9 bytes, of one process that shares no weights; CUDA's own comes on top:"
    ]
    for part in memory.parts:
        when = "always" if part.phases == memory.every else ", ".join(part.phases)
        lines.append(f"  {part.name:17}{_gb(part.bytes):>6}  {when:15}  {part.how}")
    lines += [f"  {note}" for note in memory.notes]
    lines.append("  sums: " + ", ".join(f"{phase} {_gb(count)}" for phase, count in memory.phases.items()))
    most, peak = next(iter(memory.phases.items()))
    if peak <= card * 1e9 and not memory.whole:
        return [*lines, f"  weights and their training alone: {_gb(peak)} of {card:g} GB"], True
    if peak <= card * 1e9:
        return [*lines, f"  fits: {_gb(peak)} GB of {card:g}"], True
    lines.append(
        f"  does not fit: {_gb(peak)} GB of {card:g}, in the {most}; keys to turn, and what each saves alone:"
    )
    return lines + _keys_to_turn(load, memory, card * 1e9), False


def memory_of_any(recipe: Recipe) -> Memory:
    """The parts of a run of either kind."""
    return memory_of_sft(recipe) if recipe.kind == "sft" else memory_of(recipe)


def _keys_to_turn(load: Callable[..., Recipe], memory: Memory, card: float) -> list[str]:
    """One line a key, those that save most first, and one with those that together are enough."""
    over = [phase for phase, count in memory.phases.items() if count > card]
    found = []
    for values in (_turns_sft if load().kind == "sft" else _turns)(load()):
        after = memory_of_any(load(values[0].split("; "))).phases
        each = {own: memory.phases[own] - after.get(own, 0) for own in over}
        saved = max(each.values())
        # Of all that it helps, the largest phase.
        phase = next((own for own in over if each[own] > 0.9 * saved), over[0])
        if saved > card / 200:
            found.append((saved, phase, values))
    found.sort(key=lambda own: -own[0])
    lines = [f"    {values[0].replace(';', ''):62} {_gb(saved):>5} of the {phase}" for saved, phase, values in found]
    peak, taken = memory.phases[over[0]], {}
    # What leaves the run as it is comes first, and is turned further before what changes it is turned at all.
    for kind in (True, False):
        keys = [values for _, _, values in found if (_key(values[0]) not in CHANGE_THE_RUN) is kind]
        for values, step in [(values, step) for step in range(3) for values in keys if step < len(values)]:
            trial = {**taken, values[0]: values[step]}
            lower = max(memory_of_any(load("; ".join(trial.values()).split("; "))).phases.values())
            if peak > card and lower < peak:
                peak, taken = lower, trial
    words = " ".join(taken.values()).replace(";", "") or "no key helps"
    if peak <= card:
        return [*lines, f"    {words}: {_gb(peak)} GB, which fit"]
    return [
        *lines,
        f"    {words}: {_gb(peak)} GB, which do not fit; share the weights (FSDP, ZeRO-3), or train a smaller model",
    ]


def _key(override: str) -> str:
    """The key of an override, the same for one task as for all."""
    return re.sub(r"^task_overrides\.\w+\.", "", override.partition("=")[0])


def _turns(recipe: Recipe) -> list[list[str]]:
    """A key with its values, the mildest first, as overrides; several that belong together stand between "; "."""
    args, lora = build_config(recipe), recipe.lora or {}
    batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    rows = max(batch * args.steps_per_generation, args.per_device_eval_batch_size if recipe.eval_datasets else 0)
    rows = min(rows, args.rollout_batch_size or rows)
    more = "" if args.steps_per_generation == accumulation else "; steps_per_generation={}"
    smaller = f"per_device_train_batch_size={{}}; gradient_accumulation_steps={{}}{more}"
    sizes = (batch, accumulation, args.steps_per_generation)
    where = [f"task_overrides.{task}." for task, own in args.task_overrides.items() if "image_size" in own]
    where += [""] if "image_size" in recipe.config or not where else []
    longest = max(max(sides(args.for_task(task).image_size or 512)) for task in ("mmu", "t2i", "picture", "i2i"))
    side = longest // 2 // 16 * 16
    found = [
        *_model_turns(recipe, args),
        [f"rollout_batch_size={rows // by}" for by in (2, 4, 8) if rows >= by],
        [smaller.format(sizes[0] // by, sizes[1] * by, sizes[2] * by) for by in (2, 4, 8) if batch % by == 0],
        [] if args.offload_image_tokenizer else ["offload_image_tokenizer=true"],
        [] if args.offload_reward_models else ["offload_reward_models=true"],
        _smaller_adapter(lora),
        ["; ".join(f"{own}image_size={side}" for own in where)],
    ]
    found += [
        [f"task_overrides.{task}.kv_cache=none"]
        for task in ("text", "mmu", "thought")
        if args.for_task(task).kv_cache != "none"
    ]
    return [values for values in found if values]


def _turns_sft(recipe: Recipe) -> list[list[str]]:
    """The same of a recipe with given answers."""
    args, lora = config_to_check(recipe), recipe.lora or {}
    batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    held_out = args.per_device_eval_batch_size if recipe.eval_datasets else 1
    smaller = "per_device_train_batch_size={}; gradient_accumulation_steps={}"
    found = [
        *_model_turns(recipe, args),
        [smaller.format(batch // by, accumulation * by) for by in (2, 4, 8) if batch % by == 0],
        [f"per_device_eval_batch_size={held_out // by}" for by in (2, 4, 8) if held_out % by == 0],
        [] if args.offload_image_tokenizer else ["offload_image_tokenizer=true"],
        _smaller_adapter(lora),
        [f"image_size={max(sides(args.image_size or 512)) // 2 // 16 * 16}"],
        [f"max_length={args.max_length // by}" for by in (2, 4) if args.max_length >= 8],
    ]
    return [values for values in found if values]


def _model_turns(recipe: Recipe, args: Any) -> list[list[str]]:
    """Keys of the model and of what it keeps."""
    model, lora = recipe.model, recipe.lora or {}
    return [
        [] if lora else ["lora={r: 64, lora_alpha: 64}"],
        ["model.load_in_4bit=true"] if lora and not model.load_in_4bit and not model.load_in_8bit else [],
        [] if args.gradient_checkpointing else ["gradient_checkpointing=true"],
    ]


def _smaller_adapter(lora: dict[str, Any]) -> list[str]:
    return [f"lora.r={lora.get('r', 8) // 2}"] if lora and lora.get("r", 8) > 1 else []


def _gb(count: float) -> str:
    """Bytes as GB."""
    return f"{count / 1e9:.1f}" if count > 5e7 else f"{count / 1e9:.2g}"
