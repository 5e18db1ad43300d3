"""Peak memory as measured, beside the library's arithmetic (``unigrpo check --memory``)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from unigrpo.config.arguments import UniGRPOConfig
from unigrpo.runs.build import build_config
from unigrpo.runs.memory import Memory, memory_of
from unigrpo.runs.recipe import Recipe, load_recipe

from ..benchmarks.bench import Bench, update_batch
from ..benchmarks.cases_update import update
from .cases import autocast, text
from .job import RECIPE
from .steps import Deadline, forget, peak_gb, repeat, run_steps


ROLLOUT_STEPS = 2
"""The second step of a rollout holds what every later one does."""


def recipe_of(bench: Bench, folder: str) -> Recipe:
    """The recipe, of a model of the same configuration in ``folder``; with the bench's sizes where there is only a path to walk."""
    bench.model.get_base_model().config.save_pretrained(folder)
    dtype = bench.model.get_base_model().get_input_embeddings().weight.dtype
    values: dict[str, Any] = {"model.path": folder, "model.dtype": str(dtype).removeprefix("torch.")}
    if bench.size == "tiny" or bench.device.type == "cpu":
        own = bench.sizes
        values |= {"max_prompt_length": own.prompt, "max_completion_length": own.answer, "steps": own.steps}
        values |= {"block_length": own.block_length, "per_device_train_batch_size": own.update_rows}
        values |= {"num_generations": 2, "gradient_accumulation_steps": 2}
    recipe = load_recipe(RECIPE, [f"{key}={value}" for key, value in values.items()])
    # Its rewards have no model and need packages, and its held-out batches are smaller than its windows.
    return replace(recipe, rewards=[], eval_datasets=[])


def held(bench: Bench) -> tuple[UniGRPOConfig, Memory]:
    """The recipe's arguments, and what the library says that they hold."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(bench, folder)
        return build_config(recipe), memory_of(recipe)


def checkpointing(model: nn.Module, on: bool) -> None:
    """Gradient checkpointing and training mode as a run has them, or neither."""
    base = model.get_base_model()
    if on:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        base.gradient_checkpointing_disable()
    model.train(on)


def training_step(bench: Bench, args: UniGRPOConfig) -> Callable[[], None]:
    """Old pass, loss, gradients and AdamW of one micro-batch whose answers are scored whole."""
    length = args.max_prompt_length + args.max_completion_length
    batch = update_batch(bench, args.per_device_train_batch_size, length, args.max_completion_length)
    optimizer = torch.optim.AdamW([own for own in bench.model.parameters() if own.requires_grad], lr=1e-6)

    def step() -> None:
        bench.model.zero_grad(set_to_none=True)
        with autocast(bench, args.bf16):
            update(bench, batch, old_pass=True)
        optimizer.step()

    return step


def memory_lines(bench: Bench, deadline: Deadline, add: Callable[[dict[str, Any]], None]) -> None:
    """Peaks of the recipe's update and rollout with an adapter, each beside its arithmetic, given to ``add``."""
    device, (args, memory) = bench.device.type, held(bench)
    rows, answers = args.per_device_train_batch_size, args.per_device_train_batch_size * args.steps_per_generation
    length, mode = args.max_prompt_length + args.max_completion_length, "autocast" if args.bf16 else "no autocast"

    def line(what: str, seconds: float, phase: str) -> None:
        parts = {part.name: part.bytes / 1e9 for part in memory.parts if phase in part.phases}
        found = {"what": what, "seconds": seconds, "arithmetic_gb": sum(parts.values()), "parts_gb": parts}
        found |= {"peak_gb": peak_gb(device), "peak_is": "allocated" if device == "cuda" else "of the whole process"}
        add(found)

    step = training_step(bench, args)
    checkpointing(bench.model, True)
    try:
        forget(device)
        # The first one makes the optimizer's state.
        timed = repeat(step, 2, deadline, device)
    finally:
        checkpointing(bench.model, False)
    line(f"update with AdamW, {rows} rows of {length}, checkpointing, {mode}", timed.each, "update")
    what = f"rollout, {answers} answers of {length}, a step, {mode}"
    # A step is a forward, an update about five; two steps, and a margin.
    if not deadline.fits(timed.each * answers / rows):
        add({"what": what, "left_out": "no time was left"})
        return
    # A rollout finds no gradients, and the optimizer's state, which ``step`` holds.
    bench.model.zero_grad(set_to_none=True)
    forget(device)
    sizes = replace(bench.sizes, batch=answers, prompt=args.max_prompt_length, answer=args.max_completion_length)
    sizes = replace(sizes, steps=args.steps, block_length=args.block_length)
    window = text(replace(bench, sizes=sizes), what, temperature=1.0, cast=args.bf16)
    steps = run_steps(bench.model, window.work, ROLLOUT_STEPS, deadline, device)
    line(what, steps.each, "rollout")
