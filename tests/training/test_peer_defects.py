"""Defects found in other reinforcement-learning code for diffusion language models, as laws that hold here."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainerCallback

from unigrpo.training.batches import Unit, collate
from unigrpo.training.old_and_reference import add_old_and_reference

from ..support.laws import aligned, first_window, gradients, outputs_of, weights
from ..support.presets import preset
from ..support.tiny import prompts
from ..support.tolerances import FP32, assert_rounding


SMALL = {"steps_per_generation": 2, "num_generations": 2, "max_completion_length": 8, "block_length": 4}


def moved(trainer, size: float, seed: int = 0) -> None:
    """The policy's weights a little elsewhere, as an optimizer step would leave them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


@pytest.mark.smoke
def test_padding_changes_nothing(make_trainer):
    """A row alone, and the same row beside a longer one that pads it on the right."""
    trainer = make_trainer(**preset("unigrpo", rows=prompts(4, (2, 40)), **SMALL))
    window = first_window(trainer)
    lengths = [len(row.ids) for row in window.experiences]
    short, long = lengths.index(min(lengths)), lengths.index(max(lengths))
    assert lengths[long] > lengths[short] + 30
    results = []
    for unit in (Unit((short,), 0), Unit((short, long), 0)):
        batch = collate(window.experiences, unit, 0, trainer.policy, "cpu")
        _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
        assert batch.canvas.ids.shape[1] == max(lengths[index] for index in unit.indices)
        results.append((outputs["scores"].logps[0, : lengths[short]], outputs["terms"].losses[0]))
    assert_rounding(results[0][0], results[1][0])
    slack = FP32 * float(results[1][0].abs().max())  # A row's loss moves as its log-probabilities do.
    torch.testing.assert_close(results[0][1], results[1][1], atol=slack, rtol=0)
    assert results[0][0].abs().max() > 0


class Moments(TrainerCallback):
    """Adam's first moment of one parameter, and its gradient, around every optimizer step."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []
        self.moments: list[torch.Tensor] = []
        self.steps: list[int] = []
        self.optimizers: set[int] = set()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        self.gradients.append(next(iter(gradients(model).values())))

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)
        self.optimizers.add(id(inner))
        own = inner.state[next(p for p in model.parameters() if p.grad is not None)]
        self.moments.append(own["exp_avg"].clone())
        self.steps.append(int(own["step"]))


def test_the_optimizer_keeps_its_state_over_windows(make_trainer):
    """m_n = b1 m_(n-1) + (1 - b1) g_n at every step, the first of a new rollout included."""
    record = Moments()
    trainer = make_trainer(**preset("unigrpo", max_steps=6, **SMALL), callbacks=[record])
    trainer.train()
    assert record.steps == [1, 2, 3, 4, 5, 6]
    assert len(record.optimizers) == 1
    assert trainer._micro_step == 6 * 2
    b1, moment = trainer.args.adam_beta1, torch.zeros_like(record.moments[0])
    for gradient, own in zip(record.gradients, record.moments, strict=True):
        moment = b1 * moment + (1 - b1) * gradient
        torch.testing.assert_close(own, moment, atol=1e-7, rtol=1e-4)
    assert record.moments[0].abs().max() > 0


@pytest.mark.parametrize("target", ["initial", "old"])
def test_the_kl_is_taken_to_the_policy_that_is_named(make_trainer, target):
    """Three policies: the initial one, the one that wrote the rollout, and the current one; k3 of the named pair."""
    options = preset("unigrpo", beta=0.5, kl_reference=target, kl_estimator="k3", **SMALL)
    trainer = make_trainer(**options, model=aligned())
    assert (trainer._twin is None) == (target == "old")
    start = weights(trainer.model)
    moved(trainer, 0.02, seed=1)
    window = first_window(trainer)
    add_old_and_reference(trainer.pipeline(), window, always_old=True)
    for _, _, outputs in outputs_of(trainer, window):
        assert bool((outputs["terms"].kl == 0.0).all()) == (target == "old")
        assert bool((outputs["terms"].ratio == 1.0).all())
    old = [[outputs["scores"].logps.detach() for _, _, outputs in outputs_of(trainer, window)]]
    moved(trainer, 0.02, seed=2)
    now = weights(trainer.model)
    new = [(batch, outputs) for batch, _, outputs in outputs_of(trainer, window)]
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            parameter.copy_(start[name])
    initial = [outputs["scores"].logps.detach() for _, _, outputs in outputs_of(trainer, window)]
    assert any(not torch.equal(start[name], now[name]) for name in now)
    compared = {"initial": initial, "old": old[0]}
    for place, (batch, outputs) in enumerate(new):
        found = outputs["terms"].kl
        for name, policies in compared.items():
            x = (policies[place] - outputs["scores"].logps.detach()).double()
            values = torch.where(batch.target, x.exp() - x - 1, 0.0)
            k3 = values.sum(dim=1) / batch.target.sum(dim=1)
            close = torch.allclose(found.double(), k3, rtol=1e-3, atol=1e-6)
            assert close == (name == target), name
