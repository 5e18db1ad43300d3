"""What an update is compared with: log-probabilities of the old policy and of the reference, on the window's own noise."""

from __future__ import annotations

import torch

from .diagnostics import thinned
from .likelihood import score_tokens, token_logprobs
from .metrics import Metrics
from .sampling import Pipeline, evaluating
from .units import Unit, collate
from .window import Window


@torch.no_grad()
def add_old_and_reference(pipe: Pipeline, window: Window, always_old: bool = False) -> None:
    """Old and reference log-probabilities on the window's own noise and units.

    Units that are used before the first optimizer step of the window need no old pass: there old = new. ``always_old``
    computes it all the same. Algorithms without a ratio need none at all.
    """
    moved_after = pipe.args.gradient_accumulation_steps
    for row in window.rows:
        needed = always_old or pipe.algorithms[row.task].needs_old
        row.old_logps = torch.zeros_like(row.weight) if needed else None
        row.old_known = torch.zeros(row.weight.shape[0], dtype=torch.bool)
    for k in range(pipe.args.num_iterations):
        for step, units in enumerate(window.micro_batches):
            for unit in units:
                needed = pipe.algorithms[window.rows[unit.rows[0]].task].needs_old
                if always_old or (needed and (k > 0 or step >= moved_after)):
                    _score_into(pipe, window, unit, k, pipe.model, "old_logps")
    # The exact KL compares whole distributions, which are made anew beside each update and never kept.
    with_reference = {
        task
        for task, algorithm in pipe.algorithms.items()
        if algorithm.settings.needs_reference and not algorithm.settings.exact_kl
    }
    if not any(row.task in with_reference for row in window.rows):
        return
    with pipe.reference() as model:
        for row in window.rows:
            row.ref_logps = torch.zeros_like(row.weight) if row.task in with_reference else None
        for k in range(pipe.args.num_iterations):
            for units in window.micro_batches:
                for unit in units:
                    if window.rows[unit.rows[0]].task in with_reference:
                        _score_into(pipe, window, unit, k, model, "ref_logps")


def _score_into(pipe: Pipeline, window: Window, unit: Unit, k: int, model, name: str) -> None:
    batch = collate(window.rows, unit, k, pipe.policy, pipe.device)
    settings = pipe.algorithms[batch.canvas.task].settings
    with evaluating(model):
        scores = score_tokens(
            model,
            pipe.policy,
            batch.canvas,
            batch.hidden,
            batch.target,
            batch.noisy_ids,
            settings.temperature,
            settings.likelihood_guidance,
        )
    if unit.dummy:
        return
    logps = scores.logps.cpu().unflatten(0, (len(unit.rows), -1))
    for place, index in enumerate(unit.rows):
        row = window.rows[index]
        kept = getattr(row, name)[k]
        if unit.draw is None:
            kept.copy_(logps[place, : len(kept), : len(row.ids)])
        else:
            kept[unit.draw] = logps[place, 0, : len(row.ids)]
        if name == "old_logps":
            row.old_known[k] = True


@torch.no_grad()
def log_exact_kl(pipe: Pipeline, window: Window, tasks: list[str], metrics: Metrics) -> None:
    """``kl_exact``: the categorical KL(policy || reference) at some scored tokens of each task's first unit, in nats.

    For tasks whose ``kl`` is an estimate. ``tasks`` are those of all ranks' rows: every rank makes the same forwards, one
    without a unit of the task makes them on another unit and lets the result go.
    """
    units = [unit for step in window.micro_batches for unit in step]
    for task in sorted(set(tasks)):
        settings = pipe.algorithms[task].settings
        if not units or not settings.needs_reference or settings.exact_kl:
            continue
        own = [unit for unit in units if window.rows[unit.rows[0]].task == task and not unit.dummy]
        batch = collate(window.rows, (own or units)[0], 0, pipe.policy, pipe.device)
        settings = pipe.algorithms[batch.canvas.task].settings
        arguments = (batch.canvas, batch.hidden, thinned(batch.target), batch.noisy_ids)
        law = (settings.temperature, settings.likelihood_guidance)
        with evaluating(pipe.model):
            policy = token_logprobs(pipe.model, pipe.policy, *arguments, *law)
        with pipe.reference() as model, evaluating(model):
            reference = token_logprobs(model, pipe.policy, *arguments, *law)
        if own:
            metrics.add("kl_exact", (policy.exp() * (policy - reference)).sum(dim=-1).mean(), task)
