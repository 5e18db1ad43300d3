"""Runs of each preset, small enough for a test."""

from __future__ import annotations

from dataclasses import replace

from unigrpo.training.batches import collate

from .laws import gradients


FREE = {"beta": None, "num_iterations": 2}
"""Two updates where the test's defaults would say so, every other key left to the preset."""


def preset(name: str, **changes) -> dict:
    return {"algorithm": name, **FREE, **({"num_iterations": 1} if name == "just_grpo" else {}), **changes}


def losses_of(trainer, window, k: int = 0):
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


def total_and_gradient(trainer, window, k: int = 0):
    trainer.model.zero_grad()
    total = 0.0
    for _, loss, _ in losses_of(trainer, window, k):
        loss.backward()
        total += loss.item()
    return total, gradients(trainer.model)
