"""Defects found in other reinforcement-learning code for diffusion language models, as laws that hold here."""

from __future__ import annotations

import math
import random

import jaxtyping
import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from unigrpo.algorithm.loss import PolicyLoss
from unigrpo.config.presets import PRESETS
from unigrpo.rollout.sample import sample_answers
from unigrpo.training.batches import Unit, collate
from unigrpo.training.experience import draw_noise
from unigrpo.training.old_and_reference import add_old_and_reference
from unigrpo.training.window import rebuild_window

from ..support.laws import aligned, difference, first_window, gradients, outputs_of, total_and_gradient, weights
from ..support.presets import preset
from ..support.records import terms_of
from ..support.tiny import prompts
from ..support.tolerances import FP32, assert_rounding


SMALL = {"steps_per_generation": 2, "num_generations": 2, "max_completion_length": 8, "block_length": 4}


def moved(trainer, size: float, seed: int = 0) -> None:
    """The policy's weights a little elsewhere, as an optimizer step would leave them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


# ---- one update with a KL ----


@pytest.mark.parametrize("name", [name for name, values in PRESETS.items() if values.get("beta")])
def test_one_update_a_rollout_may_have_a_kl(make_trainer, name):
    """A reference pass that only several updates prepare would fail at the first one."""
    trainer = make_trainer(**preset(name, num_iterations=1, max_steps=1, **SMALL))
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if "kl" in log]
    assert log["kl"] == 0.0
    assert math.isfinite(log["loss"])


# ---- masks ----


@pytest.mark.parametrize("name", PRESETS)
def test_noise_and_loss_leave_the_global_generators_alone(make_trainer, name, monkeypatch):
    # The shape checker picks the list item it looks at with Python's generator.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    trainer = make_trainer(**preset(name, **SMALL))
    prompt_rows = next(iter(trainer.get_train_dataloader()))
    sample = sample_answers(trainer.pipeline(), prompt_rows, 0)[0]
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    draw_noise(trainer.pipeline(), sample.rollout, sample.index, 0)
    window = first_window(trainer)
    total_and_gradient(trainer, window)
    assert random.getstate() == python
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy, strict=True))
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("name", ["diffu_grpo", "wd1", "coupled_grpo", "espo", "gdpo", "random_masking", "bgpo"])
def test_every_update_has_masks_of_its_own_under_any_accumulation(make_trainer, name):
    """Updates are counted by optimizer steps over the rollout, not by micro-steps: none of K masks is left out."""
    noise = []
    for accumulation in (1, 2):
        trainer = make_trainer(
            **preset(name, num_iterations=4),
            rows=prompts(4, (9, 12, 7)),
            num_generations=2,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=2,
        )
        window = first_window(trainer)
        for row in window.experiences:
            masks = [tuple(row.hidden[k].flatten().tolist()) for k in range(4)]
            assert len(set(masks)) == 4
        noise.append({row.index: row.hidden for row in window.experiences})
        used = []
        for k in range(4):
            used += [batch.hidden for batch, _, _ in outputs_of(trainer, window, k)]
        assert len({tuple(own.flatten().tolist()) for own in used}) == len(used)
    assert all(torch.equal(noise[0][index], noise[1][index]) for index in noise[0])


@pytest.mark.parametrize("name", PRESETS)
def test_a_loss_reads_scored_positions_alone(make_trainer, name):
    """What the policies say elsewhere, visible tokens and those of other updates included, moves nothing."""
    trainer = make_trainer(**preset(name, **SMALL))
    window = first_window(trainer)
    loss = trainer.algorithms["text"].loss
    for batch, _, outputs in outputs_of(trainer, window):
        assert not bool((batch.target & ~batch.hidden).any())
        assert not bool((batch.target & ~batch.canvas.fill_mask).any())

        def terms(logps, own=batch):
            given = (own.advantages, own.target, own.weight, own.completion_length)
            old, ref = logps.detach() - 0.3, logps.detach() + 0.2
            return terms_of(loss, logps, old, ref, *given, scored_tokens=own.scored_tokens, tokens_per_row=5.0).losses

        logps = outputs["scores"].logps.detach().requires_grad_()
        elsewhere = torch.where(batch.target, logps, -7.0).detach().requires_grad_()
        for values in (logps, elsewhere):
            terms(values).sum().backward()
            assert values.grad[~batch.target].abs().max() == 0
        assert torch.equal(terms(logps), terms(elsewhere))
        assert torch.equal(logps.grad, elsewhere.grad)


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


# ---- ratios ----


def ratios(trainer, window) -> torch.Tensor:
    return torch.cat([outputs["terms"].ratio for _, _, outputs in outputs_of(trainer, window)])


def test_ratios_on_matched_masks_show_the_policy_and_not_the_masks(make_trainer):
    """At the old policy they are 1 exactly; near it they scatter far less than across masks."""
    trainer = make_trainer(**preset("unigrpo", beta=0.0, timestep_start=500), model=aligned())
    window = first_window(trainer)
    add_old_and_reference(trainer.pipeline(), window, always_old=True)
    assert bool((ratios(trainer, window) == 1.0).all())
    moved(trainer, 1e-4)
    matched = float(ratios(trainer, window).std())
    assert matched > 0
    # The old pass on update 1's masks in place of update 0's: scored tokens that both hide.
    other = []
    for row in window.experiences:
        swapped = row.target[[1]] & row.target[[0]]
        other.append((row.old_logps[1] - row.old_logps[0])[swapped[0]])
    unmatched = float(torch.cat(other).exp().std())
    assert len(torch.cat(other)) > 20
    assert unmatched > 20 * matched


def test_the_gradient_flows_through_the_ratio_of_stored_log_probabilities(make_trainer):
    """Stored old values of a policy that has not moved give the gradient that none give, not a constant."""
    trainer = make_trainer(**preset("unigrpo", beta=0.0, **SMALL), model=aligned())
    window = first_window(trainer)
    total, gradient = total_and_gradient(trainer, window)
    assert all(batch.old_logps is None for batch, _, _ in outputs_of(trainer, window))
    add_old_and_reference(trainer.pipeline(), window, always_old=True)
    assert all(batch.old_logps is not None for batch, _, _ in outputs_of(trainer, window))
    stored, stored_gradient = total_and_gradient(trainer, window)
    assert max(value.abs().max().item() for value in gradient.values()) > 0
    assert stored == total
    assert difference(gradient, stored_gradient) == 0.0


def test_the_gradient_of_a_ratio_is_the_ratio():
    """d/dlog p of -A exp(log p - log p_old) / n = -A r / n, with old values that are constants."""
    old = torch.tensor([[-2.0, -1.0, -0.5]], dtype=torch.float64, requires_grad=True)
    logps = torch.tensor([[-1.9, -1.1, -0.4]], dtype=torch.float64, requires_grad=True)
    target = torch.ones(1, 3, dtype=torch.bool)
    given = (torch.tensor([1.5], dtype=torch.float64), target, target.double(), torch.tensor([3.0]).double())
    terms_of(PolicyLoss(), logps, old.detach(), None, *given).losses.sum().backward()
    assert logps.grad[0].tolist() == pytest.approx([-0.5 * math.exp(d) for d in (0.1, -0.1, 0.1)])
    assert old.grad is None


# ---- optimizer and reference over windows ----


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


def test_rows_left_out_of_the_update_do_not_move_the_others(make_trainer):
    """Answers without a reward are dropped with everything that belongs to them: no list is shifted against another."""
    trainer = make_trainer(**preset("trace_rl", **SMALL), model=aligned())
    window = first_window(trainer)
    dropped = window.experiences[0].index
    kept = [row for row in window.experiences if row.index != dropped]
    before = {row.index: row.advantage for row in kept}
    for row in window.experiences:
        row.active = row.index != dropped
    window = rebuild_window(trainer.pipeline(), window.experiences, window.order)
    for units in window.micro_batches:
        for unit in units:
            batch = collate(window.experiences, unit, 0, trainer.policy, "cpu")
            for place, index in enumerate(unit.indices):
                row = window.experiences[index]
                assert row.index != dropped
                assert batch.advantages[place].item() == pytest.approx(before[row.index])
                length = len(row.ids)
                assert torch.equal(batch.canvas.ids[place, :length], row.ids)
                # The scored tokens are those of one stage of this row's own order of writing.
                own = row.target[0, unit.draw]
                assert torch.equal(batch.target[place, :length], own)
                later = row.step_map[row.hidden[0, unit.draw] & row.completion_mask]
                assert not bool(own.any()) or int(row.step_map[own].min()) == int(later.min())
