"""What must hold of training on the device, on the tiny model; each law is one function."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
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
from .laws import Law, at_most


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
    """Largest |ratio - 1| or KL of a policy that learns with rate 0; infinite where no old pass was computed."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_on(device, folder, learning_rate=0.0, **options)
        trainer.train()
    if not all(bool(row.old_known[1:].all()) for row in trainer._window.experiences):
        return float("inf")
    logs = [log for log in trainer.state.log_history if "kl" in log]
    off = [max(abs(log["ratio/max"] - 1), abs(log["ratio/mean"] - 1), abs(log["kl"])) for log in logs]
    return max(off) if len(off) == TRAINING["max_steps"] else float("inf")


def full_stays(device: str) -> Law:
    """The same unit runs the same kernels, with gradient and without; the reference is a copy."""
    return at_most("unmoved policy, full: ratio off 1, or KL", unmoved(device), 0)


def lora_stays(device: str) -> Law:
    """The reference is the model with its adapter off."""
    return at_most("unmoved policy, LoRA: ratio off 1, or KL", unmoved(device, lora=True), 0)


def bf16_stays(device: str) -> Law:
    """As 8B is trained by the recipe: bf16 weights and an fp32 adapter."""
    found = unmoved(device, lora=True, model=aligned(tiny_model(torch.bfloat16)))
    return at_most("unmoved policy, LoRA on bf16: ratio off 1, or KL", found, 0)


def autocast_stays(device: str) -> Law:
    """The same with ``bf16: true``, so that the adapter computes in bf16 too."""
    found = unmoved(device, lora=True, model=aligned(tiny_model(torch.bfloat16)), bf16=True)
    return at_most("unmoved policy, LoRA on bf16, autocast: ratio off 1, or KL", found, 0)


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


def resumed(device: str) -> Law:
    """Two steps, a checkpoint in the middle of a rollout window, two more steps: the weights of four in a row."""
    name = "resumed after 2 of 4 steps: weights off, of the largest"
    with tempfile.TemporaryDirectory() as folder, deterministic():
        whole = trainer_on(device, folder, save_strategy="steps", save_steps=2)
        whole.train()
        again = trainer_on(device, folder)
        again.train(resume_from_checkpoint=f"{folder}/checkpoint-2")
    expected, found = history(whole), history(again)
    same_logs = all(found.get(step) == expected[step] for step in (3, 4))
    off = difference(weights(whole.model), weights(again.model))
    law = at_most(name, off, 0)
    return law if same_logs else law._replace(passed=False, name=f"{name}; the logs differ too")


# ---- an adapter ----


def lora_learns(device: str) -> Law:
    """Two steps leave finite numbers, and move every weight of the adapter and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_on(device, folder, lora=True, max_steps=2)
        before = weights(trainer.model)
        trainer.train()
    after = weights(trainer.model)
    # The trainer has moved the weights to the device.
    changed = {name for name, value in after.items() if not torch.equal(value, before[name].to(value.device))}
    adapter = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    lost = [name for name, value in after.items() if not bool(value.isfinite().all())]
    wrong = len(changed ^ adapter) + len(lost) + (not adapter)
    return at_most("LoRA step: weights that moved wrongly, stood still, or are not finite", wrong, 0)


TRAINING_LAWS = (full_stays, lora_stays, bf16_stays, autocast_stays, resumed, lora_learns)
"""A run on the device keeps what a run on the CPU does."""
