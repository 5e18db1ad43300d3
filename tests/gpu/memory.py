"""Peak memory by arithmetic, as in the header of ``recipes/math_mmada_8b_lora.yaml``, and as measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import yaml
from torch import nn

from unigrpo.models.head import rows_per_chunk

from ..benchmarks.cases_update import update
from ..benchmarks.device import LORA_RANK, Loads, workloads
from ..benchmarks.mid import Bench, update_batch
from ..support import RECIPES
from .deadline import Deadline
from .device import autocast, forget, moved, peak_gb
from .steps import repeat, run_steps


RECIPE = RECIPES / "math_mmada_8b_lora.yaml"

ROLLOUT_STEPS = 2
"""The second step of a rollout holds what every later one does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A micro-batch of ``loads.rows``, the ``answers`` that a rollout writes at once, and whether autocast is on."""

    loads: Loads
    answers: int
    bf16: bool


def recipe_window(size: str, device: str, loads: Loads) -> Window:
    """The recipe's; of ``loads`` where there is only a path to walk.

    Raises:
        ValueError: the recipe's rank is not the one that is measured.
    """
    if size == "tiny" or device == "cpu":
        return Window(loads=loads, answers=2 * loads.rows, bf16=False)
    recipe = yaml.safe_load(RECIPE.read_text())
    if recipe["lora"]["r"] != LORA_RANK:
        raise ValueError(f"{RECIPE.stem} has lora.r={recipe['lora']['r']}, and {LORA_RANK} is measured")
    prompt, answer, rows = (
        recipe[key] for key in ("max_prompt_length", "max_completion_length", "per_device_train_batch_size")
    )
    loads = Loads(
        rows=rows,
        prompt=prompt,
        answer=answer,
        steps=recipe["steps"],
        block_length=recipe["block_length"],
        update_length=prompt + answer,
    )
    answers = rows * recipe["gradient_accumulation_steps"]
    return Window(loads=loads, answers=answers, bf16=recipe.get("bf16", False))


# ---- arithmetic ----


def weights_gb(bench: Bench) -> dict[str, float]:
    """Base and adapter, in GB of 10^9 bytes; of the adapter also what its optimizer needs."""
    base, adapter = 0, 0
    for weight in bench.model.parameters():
        size = weight.numel() * weight.element_size()
        base, adapter = (base, adapter + size) if weight.requires_grad else (base + size, adapter)
    return {
        "base weights": base / 1e9,
        "adapter's weights": adapter / 1e9,
        "adapter's gradients": adapter / 1e9,
        "adapter's AdamW": 2 * adapter / 1e9,
    }


def base_weight(bench: Bench) -> torch.Tensor:
    """A weight whose dtype and device are the trunk's."""
    return bench.model.get_base_model().get_input_embeddings().weight


def head_gb(bench: Bench) -> float:
    """Two chunks of fp32 logits over the text's tokens."""
    rows, width = rows_per_chunk(base_weight(bench)), bench.policy.token_space("text").width
    return 2 * rows * width * 4 / 1e9


def update_arithmetic(bench: Bench, loads: Loads) -> dict[str, float]:
    """GB that an update with gradient checkpointing holds at once.

    A block that is recomputed keeps for each token 28 d + 8 m bytes in bf16, with d the width and m the MLP's: two norms in
    fp32, the inputs of seven adapters, queries, keys, values and what attention returns, and four of the MLP's.
    """
    config, tokens = bench.model.config, loads.rows * loads.update_length
    size = base_weight(bench).element_size()
    scored = loads.rows * (loads.update_length // 3)
    return {
        **weights_gb(bench),
        "checkpointed activations": config.n_layers * tokens * config.d_model * size / 1e9,
        "one block recomputed": tokens * size * (14 * config.d_model + 4 * config.mlp_hidden_size) / 1e9,
        "head": head_gb(bench) + scored * config.d_model * size / 1e9,
    }


def rollout_arithmetic(bench: Bench, window: Window) -> dict[str, float]:
    """GB that a step of a rollout holds at once; gradients and the optimizer's state stay from the update before.

    A block holds 6 d + 8 m bytes a token in bf16: its input, its norm and its result, and four of the MLP's.
    """
    config, tokens = bench.model.config, window.answers * (window.loads.prompt + window.loads.answer)
    size = base_weight(bench).element_size()
    return {
        **weights_gb(bench),
        "one block": tokens * size * (3 * config.d_model + 4 * config.mlp_hidden_size) / 1e9,
        "head": head_gb(bench),
    }


# ---- as measured ----


def checkpointing(model: nn.Module, on: bool) -> None:
    """Gradient checkpointing and training mode as a run has them, or neither."""
    base = model.get_base_model()
    if on:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        base.gradient_checkpointing_disable()
    model.train(on)


def training_step(bench: Bench, window: Window, device: str) -> Callable[[], None]:
    """Old pass, loss, gradients and AdamW of one micro-batch."""
    batch = moved(update_batch(bench, window.loads.rows, window.loads.update_length), device)
    trained = [weight for weight in bench.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)

    def step() -> None:
        with autocast(device, window.bf16):
            update(bench, batch, old_pass=True)
        optimizer.step()

    return step


def memory_lines(
    bench: Bench, loads: Loads, device: str, deadline: Deadline, add: Callable[[dict[str, Any]], None]
) -> None:
    """Peaks of the recipe's update and rollout with an adapter, each beside its arithmetic, given to ``add``."""
    window = recipe_window(bench.size, device, loads)
    loads, mode = window.loads, "autocast" if window.bf16 else "no autocast"
    step = training_step(bench, window, device)
    checkpointing(bench.model, True)
    try:
        forget(device)
        # The first one makes the optimizer's state.
        timed = repeat(step, 2, deadline, device)
    finally:
        checkpointing(bench.model, False)
    what = f"update with AdamW, {loads.rows} rows of {loads.update_length}, checkpointing, {mode}"
    add(_line(what, timed.each, update_arithmetic(bench, loads), device))
    what = f"rollout, {window.answers} answers of {loads.prompt + loads.answer}, a step, {mode}"
    # A step is a forward, an update about five; two steps, and a margin.
    if not deadline.fits(timed.each * window.answers / loads.rows):
        add({"what": what, "left_out": "no time was left"})
        return
    forget(device)
    work = workloads(bench, replace(loads, rows=window.answers), device)["rollout T=1"][0]
    with autocast(device, window.bf16):
        steps = run_steps(bench.model, lambda: work(1), ROLLOUT_STEPS, deadline, device)
    add(_line(what, steps.each, rollout_arithmetic(bench, window), device))


def _line(what: str, seconds: float, parts: dict[str, float], device: str) -> dict[str, Any]:
    return {
        "what": what,
        "seconds": seconds,
        "arithmetic_gb": sum(parts.values()),
        "parts_gb": parts,
        "peak_gb": peak_gb(device),
        "peak_is": "allocated" if device == "cuda" else "of the whole process",
    }
