"""A trainer's first window, its losses and gradients, and how two of them are compared."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import TrainerCallback

from unigrpo.training.batches import collate
from unigrpo.training.experience import make_experience
from unigrpo.training.metrics import Metrics

from .tiny import tiny_model


def first_window(trainer, number: int = 0, metrics: Metrics | None = None):
    """The first rollout of ``trainer``, without an update; what it logs goes to ``metrics``."""
    batch = next(iter(trainer.get_train_dataloader()))
    return make_experience(trainer.pipeline(), batch, number, Metrics() if metrics is None else metrics)


def outputs_of(trainer, window, k: int = 0):
    """``(batch, loss, outputs)`` of every unit of inner update ``k``, collated as the algorithm asks."""
    trainer.model.train()
    for step, units in enumerate(window.micro_batches):
        for unit in units:
            task = window.experiences[unit.indices[0]].task
            algorithm = trainer.algorithms[task]
            batch = collate(window.experiences, unit, k, trainer.policy, "cpu", algorithm.mixes_draws)
            counted = window.tokens_per_row(algorithm.loss.loss_type, step, k, task)
            batch = replace(batch, tokens_per_row=counted)
            loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
            yield batch, loss, outputs


def losses_of(trainer, window, k: int = 0):
    """``(batch, loss, terms)`` of every unit of inner update ``k``."""
    return ((batch, loss, outputs["terms"]) for batch, loss, outputs in outputs_of(trainer, window, k))


def total_and_gradient(trainer, window, k: int = 0):
    """The summed loss of the window's units and its gradient by parameter name."""
    trainer.model.zero_grad()
    total = 0.0
    for _, loss, _ in losses_of(trainer, window, k):
        loss.backward()
        total += loss.item()
    return total, gradients(trainer.model)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def difference(one: dict, two: dict) -> float:
    """Largest difference, relative to the largest value; both sides must hold the same names."""
    assert one.keys() == two.keys()
    assert one
    return max((one[n] - two[n]).abs().max().item() for n in one) / max(v.abs().max().item() for v in one.values())


def aligned(model=None):
    """The tiny model in memory that is aligned like a copy's: kernels on a mapped file's weights round differently."""
    model = tiny_model() if model is None else model
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


class Calls:
    """What reaches a module: one record a forward."""

    def __init__(self, model: nn.Module) -> None:
        self.records: list[dict] = []
        model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, model, _, kwargs) -> None:
        kind = "sample"
        if kwargs.get("targets") is not None:
            kind = "update" if torch.is_grad_enabled() else "score"
            if any(m.disable_adapters for m in model.modules() if isinstance(m, BaseTunerLayer)):
                kind = "reference"
        dropouts = [m.training for m in model.modules() if isinstance(m, nn.Dropout)]
        self.records.append(
            {"kind": kind, "training": model.training, "dropout": any(dropouts), "ids": kwargs["input_ids"].clone()}
        )

    def count(self, kind: str) -> int:
        return sum(record["kind"] == kind for record in self.records)

    def ids(self, kind: str) -> list[list]:
        return [record["ids"].tolist() for record in self.records if record["kind"] == kind]


def calls_of(trainer) -> Calls:
    """Calls of a trainer's model, without the forwards with which it looks once whether it starts where it says."""
    trainer._starts = False
    return Calls(trainer.model)


class Gradients(TrainerCallback):
    """Gradients at every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        self.steps.append(gradients(model))


def spread_adapter(model, std: float = 0.1) -> None:
    """A fresh adapter's first factors drawn anew, larger: what its second ones learn then shows in the weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def accumulated(make_trainer, accumulation: int, **options):
    """Gradients of every step, what the weights have moved and losses, at 16 rows a step and the given accumulation."""
    recorder = Gradients()
    trainer = make_trainer(
        callbacks=[recorder],
        per_device_train_batch_size=16 // accumulation,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation,
        optim="sgd",
        max_grad_norm=0.0,
        **options,
    )
    spread_adapter(trainer.model)
    start = weights(trainer.model)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    moved = {name: value - start[name] for name, value in weights(trainer.model).items()}
    return recorder.steps, moved, losses, trainer


def assert_accumulation_changes_nothing(make_trainer, counts=(2, 4), **options):
    """The same gradients, weights and losses under every accumulation; returns the trainer that has none."""
    steps, moved, losses, trainer = accumulated(make_trainer, 1, **options)
    assert len(steps) == trainer.args.max_steps
    for count in counts:
        other_steps, other_moved, other_losses, _ = accumulated(make_trainer, count, **options)
        assert losses == pytest.approx(other_losses, abs=2e-5)
        assert all(difference(own, other) < 1e-4 for own, other in zip(steps, other_steps, strict=True))
        assert difference(moved, other_moved) < 1e-4
    return trainer
