"""What must hold of training on the device, on the tiny model."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.trainer_callback import PrinterCallback

from unigrpo import UniGRPOConfig, UniGRPOTrainer

from ..support.laws import aligned, difference, weights
from ..support.runs import history
from ..support.tiny import TRAINING, low_ids, prompts, tiny_model, tiny_processor
from .laws import Law


def trainer_on(device: str, folder: str, *, lora: bool = False, model: Any = None, **changes: Any) -> UniGRPOTrainer:
    """The tests' run of seconds, on ``device``."""
    arguments = {**TRAINING, "output_dir": folder, "use_cpu": device == "cpu", **changes}
    trainer = UniGRPOTrainer(
        aligned() if model is None else model,
        low_ids,
        UniGRPOConfig(**arguments),
        prompts(8),
        processing_class=tiny_processor(),
        peft_config=LoraConfig(r=4) if lora else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


# ---- ratio one, KL zero ----


def unmoved(device: str, **options: Any) -> float:
    """Largest |ratio - 1| or KL of a policy that learns with rate 0; infinite where no old pass was computed.

    The same unit runs the same kernels, with gradient and without; the reference is a copy, or the model with its adapter off.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_on(device, folder, learning_rate=0.0, **options)
        trainer.train()
    if not all(bool(row.old_known[1:].all()) for row in trainer._window.experiences):
        return float("inf")
    logs = [log for log in trainer.state.log_history if "kl" in log]
    off = [max(abs(log["ratio/max"] - 1), abs(log["ratio/mean"] - 1), abs(log["kl"])) for log in logs]
    return max(off) if len(off) == TRAINING["max_steps"] else float("inf")


def on_bf16(device: str, **options: Any) -> float:
    """The same of bf16 weights with an fp32 adapter, as 8B is trained by the recipe."""
    return unmoved(device, lora=True, model=aligned(tiny_model(torch.bfloat16)), **options)


# ---- resuming ----


@contextmanager
def deterministic() -> Iterator[None]:
    """Kernels that sum in one order; those that have none say so in warnings, which are left out."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def resumed(device: str) -> float:
    """Two steps, a checkpoint in the middle of a rollout window, two more: the weights of four in a row; infinite if the logs differ."""
    with tempfile.TemporaryDirectory() as folder, deterministic():
        whole = trainer_on(device, folder, save_strategy="steps", save_steps=2)
        whole.train()
        again = trainer_on(device, folder)
        again.train(resume_from_checkpoint=f"{folder}/checkpoint-2")
    expected, found = history(whole), history(again)
    same_logs = all(found.get(step) == expected[step] for step in (3, 4))
    return difference(weights(whole.model), weights(again.model)) if same_logs else float("inf")


# ---- an adapter ----


def moved_wrongly(device: str) -> float:
    """Weights but the adapter's that two steps move, of the adapter's that they do not, and such that are not finite."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_on(device, folder, lora=True, max_steps=2)
        before = weights(trainer.model)
        trainer.train()
    after = weights(trainer.model)
    # The trainer has moved the weights to the device.
    changed = {name for name, value in after.items() if not torch.equal(value, before[name].to(value.device))}
    adapter = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    lost = [name for name, value in after.items() if not bool(value.isfinite().all())]
    return len(changed ^ adapter) + len(lost) + (not adapter)


def none(measure: Callable[..., float], **options: Any) -> Law:
    """``measure`` must find nothing."""
    return lambda device: (measure(device, **options), 0)


TRAINING_LAWS: dict[str, Law] = {
    "unmoved policy, full: ratio off 1, or KL": none(unmoved),
    "unmoved policy, LoRA: ratio off 1, or KL": none(unmoved, lora=True),
    "unmoved policy, LoRA on bf16: ratio off 1, or KL": none(on_bf16),
    "unmoved policy, LoRA on bf16, autocast: ratio off 1, or KL": none(on_bf16, bf16=True),
    "resumed after 2 of 4 steps: weights off, of the largest": none(resumed),
    "LoRA step: weights that moved wrongly, stood still, or are not finite": none(moved_wrongly),
}
"""A run on the device keeps what a run on the CPU does."""
