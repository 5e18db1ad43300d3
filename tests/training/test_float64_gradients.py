"""The gradient that the optimizer is given, against one derived anew in float64.

Taken from the trainer are the answers and the noise alone. The network (``support/float64``), the advantages and each loss are
written a second time, from the papers' formulas. Every optimizer step is compared, also those after the policy has moved away from
the one that wrote the answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from ..support.float64 import distribution
from ..support.images import options
from ..support.tiny import prompts, tiny_model


TOLERANCE = 3e-4
"""Of the norm of the whole gradient. fp32 sums of some hundred terms through three layers leave 1e-5 of a token's gradient to chance
(``support/tolerances``), and what good and bad answers pull cancels to between a tenth and a third of their sizes: 3e-5 to 1e-4.
Seen are 3e-6 to 4e-5. Mistakes are larger by far: a neighbour's advantage 1, a population's standard deviation 0.1, one
micro-batch's tokens in place of the step's 0.03."""


# ---- the losses, each as its paper has it ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One answer at one inner update: log-probabilities ``[S, L]`` of S draws in float64, its advantage and length."""

    new: Tensor
    old: Tensor
    ref: Tensor
    kl: Tensor
    scored: Tensor
    weight: Tensor
    advantage: float
    length: int
    task: str

    def draws(self) -> list[int]:
        return [draw for draw, own in enumerate(self.scored) if own.any()]


def clipped(log_ratio: Tensor, advantage: float, epsilon: float) -> Tensor:
    ratio = log_ratio.exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)


def k3(row: Row) -> Tensor:
    return (row.ref - row.new).exp() - (row.ref - row.new) - 1


def token_terms(row: Row, case: Case) -> Tensor:
    """beta KL - min(r A, clip(r) A) of every token, ``[S, L]``."""
    kl = row.kl if row.task == "t2i" else k3(row)
    return case.beta * kl - clipped(row.new - row.old, row.advantage, case.epsilon)


def unigrpo(rows: list[Row], case: Case) -> Tensor:
    """Mean over a draw's masked tokens, then over draws, then over rows (arXiv 2505.15809, Eq. 5)."""
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        terms, draws = token_terms(row, case), row.draws()
        total = total + case.share(row.task) * sum(terms[s][row.scored[s]].mean() for s in draws) / len(draws)
    return total / len(rows)


def dapo(rows: list[Row], case: Case) -> Tensor:
    """Sum over all tokens of the step divided by their number (arXiv 2503.14476)."""
    terms = [token_terms(row, case)[s][row.scored[s]] for row in rows for s in row.draws()]
    return torch.cat(terms).sum() / sum(len(own) for own in terms)


def mixed(values: Tensor, row: Row) -> Tensor:
    """sum_s w_s log p_s of every token, ``[L]``."""
    return (values * row.weight).masked_fill(~row.scored, 0.0).sum(dim=0)


def coupled_grpo(rows: list[Row], case: Case) -> Tensor:
    """Draws become one log-probability a token before the ratio; divided by the answer's length (arXiv 2506.20639)."""
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        new, old, ref = (mixed(own, row) for own in (row.new, row.old, row.ref))
        terms = case.beta * ((ref - new).exp() - (ref - new) - 1) - clipped(new - old, row.advantage, case.epsilon)
        total = total + terms[row.scored.any(dim=0)].sum() / row.length
    return total / len(rows)


def espo(rows: list[Row], case: Case) -> Tensor:
    """One ratio an answer, exp((ELBO - ELBO_old) / n), and k2 of the bounds divided by n (arXiv 2512.03759)."""
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        new, old, ref = (mixed(own, row).sum() for own in (row.new, row.old, row.ref))
        kl = (ref - new).square() / 2 / row.length
        total = total + case.beta * kl - clipped((new - old) / row.length, row.advantage, case.epsilon)
    return total / len(rows)


# ---- advantages ----


def reward_of(ids: list[int]) -> float:
    """Anything that differs between answers and does not follow from their order."""
    return sum((place + 1) * token for place, token in enumerate(ids)) % 97 / 97


def by_ids(completion_ids, **_):
    return [reward_of(ids) for ids in completion_ids]


def standardised(rewards: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-4), Bessel-corrected, of one group."""
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


def leave_one_out(rewards: Tensor) -> Tensor:
    """r - the mean of the others."""
    return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)


# ---- the runs ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A run's settings, and the loss they stand for."""

    loss: Callable[[list[Row], Case], Tensor] = unigrpo
    advantages: Callable[[Tensor], Tensor] = standardised
    epsilon: float = 0.05
    beta: float = 0.3
    settings: dict
    learning_rate: float = 5e-4
    kind: str = "text"
    temperature: float = 0.9
    guidance: float = 1.5
    image_weight: float = 1.0

    def share(self, task: str) -> float:
        return self.image_weight if task == "t2i" else 1.0


ESPO = {"algorithm": "espo", "num_noise_samples": 2}
CASES = {
    "unigrpo": Case(settings={"num_noise_samples": 2}),
    "unigrpo, dapo": Case(loss=dapo, settings={"loss_type": "dapo"}),
    "coupled_grpo": Case(loss=coupled_grpo, advantages=leave_one_out, settings={"algorithm": "coupled_grpo"}),
    "espo": Case(loss=espo, advantages=leave_one_out, epsilon=0.02, settings=ESPO),
    "all tasks": Case(settings={}, learning_rate=1e-4, kind="mixed", image_weight=0.7),
}


class Applied(TrainerCallback):
    """What every optimizer step was given: gradients, weights and the window they came from."""

    def __init__(self) -> None:
        self.trainer, self.steps = None, []

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs) -> None:
        def keep(*_) -> None:
            grads = {name: own.grad.double().clone() for name, own in model.named_parameters()}
            self.steps.append((grads, double(model), self.trainer._window))

        # Under accelerate's wrapper: the optimizer that steps.
        getattr(optimizer, "optimizer", optimizer).register_step_pre_hook(keep)


def double(model) -> dict[str, Tensor]:
    return {name: own.detach().double().clone() for name, own in model.named_parameters()}


def rows_of_step(args, window, step: int) -> list:
    """The window's rows of optimizer step ``step`` of the window: the micro-batches that it accumulates."""
    size = len(window.order) // args.steps_per_generation * args.gradient_accumulation_steps
    start = step % (args.steps_per_generation // args.gradient_accumulation_steps) * size
    return [window.experiences[index] for index in window.order[start : start + size]]


def advantages_of(window, case: Case, group: int) -> dict[int, float]:
    """Advantages by the row's place in the window; a group's answers stand together."""
    rows = sorted(window.experiences, key=lambda row: row.index)
    rewards = torch.tensor([reward_of(row.ids[row.completion_mask].tolist()) for row in rows], dtype=torch.float64)
    values = torch.cat([case.advantages(own) for own in rewards.split(group)])
    return {row.index: value for row, value in zip(rows, values.tolist(), strict=True)}


def derived(weights: dict, old: dict, ref: dict, config, row, k: int, advantage: float, case: Case) -> Row:
    """One row of the loss, with gradients to ``weights``."""

    def scored(own: dict) -> tuple[Tensor, Tensor]:
        table, first = distribution(own, config, row.ids, row.hidden[k], row.task, case.temperature, case.guidance)
        columns = (row.ids - first).clamp(0, table.shape[2] - 1).expand(len(table), -1)
        return table, table.gather(2, columns[:, :, None]).squeeze(2)

    (table, new), (_, before) = scored(weights), scored(old)
    reference, start = scored(ref)
    written = table.isfinite()
    apart = torch.where(written, table, 0.0) - torch.where(written, reference, 0.0)
    target = row.target[k]
    zero = torch.zeros((), dtype=torch.float64)
    return Row(
        new=torch.where(target, new, zero),
        old=torch.where(target, before, zero).detach(),
        ref=torch.where(target, start, zero).detach(),
        kl=(table.exp() * apart).sum(dim=2),
        scored=target,
        weight=row.weight[k].double(),
        advantage=advantage,
        length=int(row.completion_mask.sum()),
        task=row.task,
    )


@pytest.fixture
def run(make_trainer):
    """Six optimizer steps of a case: two inner updates of a window, and one of the next."""

    def train(case: Case):
        model, applied = tiny_model(), Applied()
        # A tenth of what the model writes ends the answer, so that lengths differ.
        model.config.stop_token_ids = list(range(60, 80))
        own = {"rows": prompts(16)}
        if case.kind == "mixed":
            pictures = {"guidance": "both", "guidance_scale": case.guidance, "loss_weight": case.image_weight}
            own = options("mixed", 5, t2i=pictures)
        ref = double(model)
        trainer = make_trainer(
            **own,
            **case.settings,
            model=model,
            rewards=by_ids,
            callbacks=[applied],
            epsilon=case.epsilon,
            beta=case.beta,
            temperature=case.temperature,
            learning_rate=case.learning_rate,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0.0,
            max_steps=6,
        )
        applied.trainer = trainer
        trainer.train()
        return trainer, applied.steps, ref

    return train


@pytest.mark.smoke
@pytest.mark.parametrize("name", CASES)
def test_applied_gradients_are_those_of_the_papers_formula(run, name):
    case = CASES[name]
    trainer, steps, ref = run(case)
    args, config, farthest, tasks = trainer.args, trainer.model.config, 0.0, set()
    in_window = args.steps_per_generation // args.gradient_accumulation_steps
    for number, (applied, weights, window) in enumerate(steps):
        if number % (in_window * args.num_iterations) == 0:
            old, advantages = weights, advantages_of(window, case, args.num_generations)
        k = number // in_window % args.num_iterations
        moving = {key: own.clone().requires_grad_() for key, own in weights.items()}
        rows = [
            derived(moving, old, ref, config, row, k, advantages[row.index], case)
            for row in rows_of_step(args, window, number)
        ]
        case.loss(rows, case).backward()
        size = math.sqrt(sum(float(own.grad.square().sum()) for own in moving.values()))
        off = math.sqrt(sum(float((applied[key] - own.grad).square().sum()) for key, own in moving.items()))
        assert off < TOLERANCE * size, f"step {number}: {off / size:.2g} of the gradient's norm"
        farthest = max(farthest, *(float((row.new.detach() - row.old).abs().max()) for row in rows))
        tasks |= {row.task for row in rows}
        assert len({row.length for row in rows}) > 1 or case.kind == "mixed"
    assert len(steps) == 6
    assert farthest > 2 * case.epsilon, "the policy has not moved beyond the clip range"
    assert len(tasks) == (3 if case.kind == "mixed" else 1)
