"""The reinforcement-learning update: old pass, loss and gradients, with a frozen and with a trainable vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.algorithm.loss import LossBatch, PolicyLoss

from .bench import FULL, Bench, UpdateBatch, update_batch
from .expected import parts_of
from .measure import EXACT, Result, compared, interleave
from .plain import Clock
from .plain import update as plain_update


LOSS = PolicyLoss(beta=0.01)
CLOSE = 1e-4


def update(bench: Bench, batch: UpdateBatch, old_pass: bool) -> Tensor:
    """One loss step as the trainer makes it: ``old_pass`` scores the batch first, else old = new, as at the first update
    after a rollout. The loss; gradients are left on the weights.
    """
    arguments = (bench.model, bench.policy, batch.canvas, batch.hidden, batch.hidden)
    if old_pass:
        with torch.no_grad():
            old = score_tokens(*arguments).logps
    scores = score_tokens(*arguments)
    old = (old if old_pass else scores.logps.detach()) + batch.old_shift
    given = LossBatch(
        advantages=batch.advantages,
        target=batch.hidden,
        weight=batch.hidden.float(),
        completion_length=batch.canvas.fill_mask.sum(dim=1).float(),
        old_logps=old,
        ref_logps=old,
    )
    terms = LOSS(given, scores)
    loss = terms.losses.mean()
    loss.backward()
    return loss.detach()


@contextmanager
def vocabulary(model: torch.nn.Module, trainable: bool) -> Iterator[None]:
    """Embedding and head as an adapter leaves them, frozen, or trained with the rest; gradients are dropped after."""
    weights = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(trainable)
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for weight, grad in zip(weights, before, strict=True):
            weight.requires_grad_(grad)


def measured(model: torch.nn.Module, step: Callable[[], Tensor]) -> dict[str, float]:
    """The loss of ``step`` and the norm of each weight's gradient, by name."""
    model.zero_grad(set_to_none=True)
    loss = step()
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": float(loss), **{name: float(grad.norm()) for name, grad in named.items()}}


def agree(ours: dict[str, float], plain: dict[str, float]) -> dict[str, bool]:
    """Loss and gradient norms, each within ``CLOSE`` of the plain one."""
    gradients = [abs(ours[name] / plain[name] - 1) < CLOSE for name in plain if name != "loss"]
    return {
        "loss equal": abs(ours["loss"] / plain["loss"] - 1) < CLOSE,
        "gradients equal": ours.keys() == plain.keys() and bool(gradients) and all(gradients),
    }


def updates(bench: Bench) -> list[Result]:
    """All four: frozen and trainable vocabulary, with the old pass and without."""
    return [*_updates(bench, trainable=False), *_updates(bench, trainable=True)]


def _updates(bench: Bench, trainable: bool) -> list[Result]:
    sizes, clock, model = bench.sizes, Clock(), bench.model
    batch, weights = update_batch(bench, sizes.update_rows, sizes.update_length), bench.plain
    with vocabulary(model, trainable):
        timed = interleave(
            {
                "plain": lambda: measured(model, lambda: plain_update(weights, batch, clock)),
                "old pass": lambda: measured(model, lambda: update(bench, batch, old_pass=True)),
                "old = new": lambda: measured(model, lambda: update(bench, batch, old_pass=False)),
            },
            sizes.rounds,
        )
    plain, name = timed["plain"], "full" if trainable else "frozen head"
    full_size = (sizes.update_rows, sizes.update_length) == (FULL.update_rows, FULL.update_length)
    parts = parts_of("update", clock, sum(plain.seconds), 1000 * plain.median, comparable=full_size and trainable)

    def result(label: str, side: str, goal: float, floor: float, note: str, **extra) -> Result:
        checks, extra = (
            agree(timed[side].value, plain.value),
            {"scored_share": batch.hidden.float().mean().item(), **extra},
        )
        limits = {"goal": goal, "floor": floor}
        return compared(f"{label}, {name}", EXACT, timed, side, checks=checks, note=note, extra=extra, **limits)

    once, twice = ((1.6, 1.35), (1.6, 1.35)) if trainable else ((2.0, 1.6), (2.7, 2.1))
    return [
        result("update", "old pass", *once, "old pass, forward and backward", plain_parts=parts),
        result("update, 1 iteration", "old = new", *twice, "old = new, so no old pass; the plain side makes one"),
    ]
