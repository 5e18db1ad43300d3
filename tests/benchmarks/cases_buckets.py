"""Rows of many lengths in an optimizer step: dealt to micro-batches by length against dealt by chance."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor

from unigrpo import UniGRPOConfig
from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.config.build import build_algorithm
from unigrpo.training.batches import Unit, collate
from unigrpo.training.window import Window, cut_window, rebuild_window
from unigrpo.types import Experience, keyed_generator

from .bench import Bench, UpdateBatch, update_batch
from .cases_update import LOSS, vocabulary
from .measure import EXACT, Result, compared, interleave, relative_error


MICRO_BATCHES = 4
CLOSE = 1e-4


def buckets(bench: Bench) -> list[Result]:
    """The update without an old pass, frozen head; no floor, because chance decides how much there is to save."""
    sizes, model = bench.sizes, bench.model
    count = MICRO_BATCHES * sizes.bucket_rows
    rows = [row_of(bench, sizes.bucket_lengths[i % len(sizes.bucket_lengths)], i) for i in range(count)]
    pipe = stand_in(bench)
    chance = torch.randperm(count, generator=keyed_generator("order", pipe.args.seed, 0, 0)).tolist()
    windows = {"plain": rebuild_window(pipe, rows, chance), "ours": cut_window(pipe, rows, window=0)}
    units = {side: [unit for own in window.micro_batches for unit in own] for side, window in windows.items()}
    with vocabulary(model, trainable=False):
        timed = interleave({side: partial(gradients, bench, own) for side, own in windows.items()}, sizes.rounds)
    ours, plain = timed["ours"].value, timed["plain"].value
    same = ours.keys() == plain.keys() and all(relative_error(ours[name], plain[name]) < CLOSE for name in plain)
    counts = {side: len(own) for side, own in units.items()}
    note = f"plain: our update in the order of chance; {counts['plain']} against {counts['ours']} units"
    checks, extra = {"gradients equal": same}, {"units": counts}
    return [compared("mixed lengths", EXACT, timed, checks=checks, note=note, extra=extra)]


def row_of(bench: Bench, length: int, index: int) -> Experience:
    """One row of an update batch, without its padding."""
    batch: UpdateBatch = update_batch(bench, 1, length)
    canvas, hidden = batch.canvas, batch.hidden[None]
    advantage = 1.0 if index % 2 else -0.5
    return Experience(
        ids=canvas.ids[0].roll(index),
        attention_mask=canvas.attention_mask[0],
        fill_mask=canvas.fill_mask[0],
        completion_mask=canvas.fill_mask[0],
        hidden=hidden,
        target=hidden,
        weight=hidden.float(),
        sampling_logps=torch.zeros(length),
        step_map=torch.zeros(length, dtype=torch.int64),
        advantage=advantage,
        active=True,
        task="text",
        token_space=canvas.token_space,
        index=index,
    )


def stand_in(bench: Bench) -> SimpleNamespace:
    """What cutting a window reads of a trainer's pipeline: one optimizer step of ``MICRO_BATCHES``, one update."""
    args = UniGRPOConfig(
        "unused",
        use_cpu=True,
        report_to="none",
        per_device_train_batch_size=bench.sizes.bucket_rows,
        gradient_accumulation_steps=MICRO_BATCHES,
        num_generations=2,
        num_iterations=1,
    )
    return SimpleNamespace(
        args=args,
        policy=bench.policy,
        algorithms={"text": build_algorithm(args, "text")},
        rank=0,
        device="cpu",
        gather=lambda values: values,
    )


def gradients(bench: Bench, window: Window) -> dict[str, Tensor]:
    """The gradient of each weight, summed over the units of ``window``."""
    bench.model.zero_grad(set_to_none=True)
    for unit in (unit for own in window.micro_batches for unit in own):
        backward(bench, window.experiences, unit)
    return {name: weight.grad.clone() for name, weight in bench.model.named_parameters() if weight.grad is not None}


def backward(bench: Bench, rows: list[Experience], unit: Unit) -> None:
    """The loss of one unit as the trainer makes it where old = new."""
    batch = collate(rows, unit, 0, bench.policy, "cpu")
    scores = score_tokens(bench.model, bench.policy, batch.canvas, batch.hidden, batch.target)
    old = scores.logps.detach()
    given = replace(batch, old_logps=old, ref_logps=old, scored_tokens=None)
    terms = LOSS(given, scores)
    terms.losses.sum().backward()
