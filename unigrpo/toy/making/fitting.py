"""The training loop of the shipped networks that are no policies, and what their scripts share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...terminal import tracked


STEPS_BETWEEN_STATES = 200


def fit(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    title: str,
    generator: torch.Generator,
    state: Path | None = None,
    **adamw: Any,
) -> float:
    """Trains ``model`` in place with AdamW, a warm cosine and gradients of norm 1 at most; returns the last loss.

    Args:
        loss: the loss of a step's batch, which it draws with ``generator`` and nothing else.
        state: a file that is kept while training lasts. Where it exists, training goes on from there.
        adamw: ``lr``, ``betas``, ``weight_decay``.
    """
    optimizer = torch.optim.AdamW(model.parameters(), **adamw)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    parts, first = {"model": model, "optimizer": optimizer, "schedule": schedule}, 0
    if state is not None and state.exists():
        kept = torch.load(state, weights_only=True)
        first = kept["step"]
        generator.set_state(kept["generator"])
        for name, part in parts.items():
            part.load_state_dict(kept[name])
    model.train()
    for step in tracked(range(first, steps), title):
        value = loss(step)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if state is not None and (step + 1) % STEPS_BETWEEN_STATES == 0:
            kept = {name: part.state_dict() for name, part in parts.items()}
            _write({**kept, "step": step + 1, "generator": generator.get_state()}, state)
    model.eval()
    return value.item()


def _write(kept: dict[str, Any], state: Path) -> None:
    """Replaces ``state`` at once, so that an interruption leaves a whole file."""
    state.parent.mkdir(parents=True, exist_ok=True)
    torch.save(kept, state.with_suffix(".tmp"))
    os.replace(state.with_suffix(".tmp"), state)


def warm_cosine(step: int, steps: int, warm_up: int = 50) -> float:
    """Factor on the learning rate: linear up over ``warm_up`` steps, then a cosine to zero at ``steps``."""
    return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))


@contextmanager
def private_construction(generator: torch.Generator) -> Iterator[None]:
    """Layers made inside take their weights from ``generator``; the global stream is left as it was."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the GPUs too, and nothing would put those back.
        torch.default_generator.manual_seed(draw_seed(generator))
        yield


def draw_seed(generator: torch.Generator) -> int:
    """An integer in [0, 2^31) for a generator that is not torch's."""
    return int(torch.randint(2**31, (), generator=generator))


def directory_size(folder: Path) -> int:
    """Bytes of all files under ``folder``."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
