"""The plain implementation of the public loop on a device, beside ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..benchmarks.cases_images import GUIDANCE
from ..benchmarks.device import Loads
from ..benchmarks.mid import Bench, image_canvas, text_canvas, update_batch
from ..benchmarks.plain import Clock, PlainModel, image_rollout, text_rollout, update
from .device import autocast, moved


class PlainSide(PlainModel):
    """The plain forward over a model with or without a LoRA; ``tick`` is called before each of its forwards."""

    def __init__(self, model: nn.Module, tick: Callable[[], None]) -> None:
        self.config, self.tick, self.scale = model.config, tick, 1.0
        self.weights = {
            name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
            for name, weight in model.named_parameters()
        }
        for adapter in getattr(model, "peft_config", {}).values():
            self.scale = adapter.lora_alpha / adapter.r

    def logits(self, ids: Tensor, bias: Tensor | None = None, clock: Clock | None = None) -> Tensor:
        """As ``PlainModel``'s."""
        self.tick()
        return super().logits(ids, bias, clock)

    def _linear(self, hidden: Tensor, name: str) -> Tensor:
        out = super()._linear(hidden, name)
        down = self.weights.get(f"{name}.lora_A.default.weight")
        if down is None:
            return out
        up = self.weights[f"{name}.lora_B.default.weight"]
        return out + self.scale * F.linear(F.linear(hidden.to(down.dtype), down), up).to(out.dtype)


Plain = Callable[[Callable[[], None]], Any]
"""Work that calls its argument at the beginning of each of its forwards."""


def plain_text(bench: Bench, loads: Loads, device: str, temperature: float) -> Plain:
    """The public text sampler on the workload of ``Loads``."""
    ids = text_canvas(bench, loads.rows, loads.prompt, loads.answer).ids.to(device)

    def work(tick: Callable[[], None]) -> Tensor:
        # Whatever the plain code makes without a device is made on this one, random numbers included.
        with torch.device(device):
            return text_rollout(
                PlainSide(bench.model, tick),
                ids,
                loads.prompt,
                steps=loads.steps,
                block_length=loads.block_length,
                temperature=temperature,
                clock=Clock(),
                generator=torch.Generator(device).manual_seed(0),
            )

    return work


def plain_images(bench: Bench, loads: Loads, device: str) -> Plain:
    """The public image sampler: guidance over the whole vocabulary, text slots padded and masked."""
    canvas = image_canvas(bench, loads.caption, loads.slots, loads.image_tokens, trim=False)
    canvas = canvas.take(torch.zeros(loads.rows, dtype=torch.int64)).to(device)
    twin, space = bench.policy.guidance_canvas(canvas), bench.policy.token_space("t2i")

    def work(tick: Callable[[], None]) -> Tensor:
        with torch.device(device):
            return image_rollout(
                PlainSide(bench.model, tick),
                (canvas.ids, twin.ids),
                (canvas.attention_mask, twin.attention_mask),
                slice(space.start, space.stop),
                loads.image_tokens,
                steps=loads.image_steps,
                guidance_scale=GUIDANCE,
                clock=Clock(),
                generator=torch.Generator(device).manual_seed(0),
            )

    return work


def plain_update(bench: Bench, loads: Loads, device: str) -> Callable[[], Tensor]:
    """The public loss step, old pass included, of whatever weights are trained; gradients are dropped first."""
    batch, side = (
        moved(update_batch(bench, loads.rows, loads.update_length), device),
        PlainSide(bench.model, lambda: None),
    )

    def work() -> Tensor:
        bench.model.zero_grad(set_to_none=True)
        with autocast(device), torch.device(device):
            return update(side, batch, Clock())

    return work
