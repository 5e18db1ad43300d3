"""What an update is compared with: log-probabilities of the old policy and of the reference, on the window's own noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..algorithm.likelihood import score_tokens, token_logprobs
from ..algorithm.noising import TrajectoryNoising
from ..algorithm.noising.base import answers
from ..config.build import Algorithm
from ..models.base import DiffusionPolicy
from ..models.lockstep import forwards_meet, lockstep
from ..rollout.pipeline import Pipeline, evaluating
from ..samplers.kv_cache import EXACT
from ..types import SPANS, Canvas, Experience, Rollout, canvas_tasks
from .batches import Batch, Unit, collate, score_batch
from .diagnostics import thinned
from .metrics import Metrics
from .old_policy import forget_old, needs_old_pass
from .window import Window


@torch.no_grad()
def add_old_and_reference(pipe: Pipeline, window: Window, always_old: bool = False) -> None:
    """Old and reference log-probabilities on the window's own noise and units.

    ``always_old`` makes the old pass also where the policy is the old one, and where no algorithm reads it.
    """
    for own in window.experiences:
        forget_old(own, kept=always_old or pipe.algorithms[own.task].needs_old)
    with in_step(pipe.model, pipe.policy, pipe.device) as model:
        for k, step, unit, task in _units(window, pipe.args.num_iterations):
            if always_old or needs_old_pass(pipe.args, pipe.algorithms[task], k, step):
                for own, draws, logps in _logps_of(pipe, model, window, unit, k):
                    own.old_logps[k][draws] = logps
                    own.old_known[k] = True
    # The exact KL compares whole distributions, which are made anew beside each update and never kept.
    with_reference = {
        task
        for task, algorithm in pipe.algorithms.items()
        if algorithm.settings.needs_reference and not algorithm.settings.exact_kl
    }
    if not with_reference:
        return
    with pipe.reference() as reference, in_step(reference, pipe.policy, pipe.device) as model:
        for own in window.experiences:
            own.ref_logps = torch.zeros_like(own.weight) if own.task in with_reference else None
        for k, _, unit, task in _units(window, pipe.args.num_iterations):
            if task in with_reference:
                for own, draws, logps in _logps_of(pipe, model, window, unit, k):
                    own.ref_logps[k][draws] = logps


def _units(window: Window, num_iterations: int) -> Iterator[tuple[int, int, Unit, str]]:
    """Each inner update, micro-step, unit that is not a dummy, and its task."""
    for k in range(num_iterations):
        for step, units in enumerate(window.micro_batches):
            for unit in units:
                if not unit.dummy:
                    yield k, step, unit, window.experiences[unit.indices[0]].task


def _logps_of(
    pipe: Pipeline, model: Any, window: Window, unit: Unit, k: int
) -> Iterator[tuple[Experience, int | slice, Tensor]]:
    """Of each experience of the unit: which of its draws were scored, and their log-probabilities, without padding."""
    batch = collate(window.experiences, unit, k, pipe.policy, pipe.device)
    settings = pipe.algorithms[batch.canvas.task].settings
    scores = score_batch(model, pipe.policy, batch, settings.temperature, settings.likelihood_guidance)
    logps = scores.logps.cpu().unflatten(0, (len(unit.indices), -1))
    for place, index in enumerate(unit.indices):
        own = window.experiences[index]
        count, length = own.target.shape[1:]
        if unit.draw is None:
            yield own, slice(None), logps[place, :count, :length]
        else:
            yield own, unit.draw, logps[place, 0, :length]


@contextmanager
def in_step(model: Any, policy: DiffusionPolicy, device: torch.device | str) -> Iterator[Any]:
    """What to call for ``model``, in eval mode; ranks that need other passes make equally many forwards."""
    meet = lockstep(model, policy, device) if forwards_meet(model) else nullcontext(model)
    with evaluating(model), meet as together:
        yield together


def exact_reference(
    reference: Callable[[], AbstractContextManager],
    policy: DiffusionPolicy,
    algorithms: dict[str, Algorithm],
    batch: Batch,
) -> Tensor | None:
    """The reference's log-probabilities ``[n, W]`` of the whole token space at each scored token; None without an exact KL.

    Where the reference's forwards wait for each other, ranks whose batch has another KL make one too: in a run of several
    tasks, one rank may train text while another trains pictures.
    """
    if not any(algorithm.settings.exact_kl for algorithm in algorithms.values()):
        return None
    settings = algorithms[batch.canvas.task].settings
    law = (settings.temperature, settings.likelihood_guidance)
    with reference() as model, evaluating(model):
        if not settings.exact_kl and not forwards_meet(model):
            return None
        target = batch.target if settings.exact_kl else thinned(batch.target)
        counted = {"counts": batch.counts, "padded": batch.padded} if settings.exact_kl else {}
        logprobs = token_logprobs(model, policy, batch.canvas, batch.hidden, target, batch.noisy_ids, *law, **counted)
    return logprobs if settings.exact_kl else None


@torch.no_grad()
def log_exact_kl(pipe: Pipeline, window: Window, tasks: list[str], metrics: Metrics) -> None:
    """``kl_exact``: the categorical KL(policy || reference) at some scored tokens of each task's first unit, in nats.

    For tasks whose ``kl`` is an estimate. ``tasks`` are those of all ranks' answers: every rank makes the same forwards, one
    without a unit of the task makes them on another unit and lets the result go.
    """
    for task in canvas_tasks(tasks):
        settings = pipe.algorithms[task].settings
        if not settings.needs_reference or settings.exact_kl:
            continue
        unit, own = _unit_of(window, task)
        if unit is None:
            continue
        batch = collate(window.experiences, unit, 0, pipe.policy, pipe.device)
        settings = pipe.algorithms[batch.canvas.task].settings
        arguments = (batch.canvas, batch.hidden, thinned(batch.target), batch.noisy_ids)
        law = (settings.temperature, settings.likelihood_guidance)
        with evaluating(pipe.model):
            policy = token_logprobs(pipe.model, pipe.policy, *arguments, *law)
        with pipe.reference() as model, evaluating(model):
            reference = token_logprobs(model, pipe.policy, *arguments, *law)
        if own:
            metrics.add("kl_exact", (policy.exp() * (policy - reference)).sum(dim=-1).mean(), task, len(policy))


@torch.no_grad()
def log_decoding_gap(pipe: Pipeline, window: Window, number: int, tasks: list[str], metrics: Metrics) -> None:
    """``sampling/decoding_gap/{mean,max}``: |log p when drawn - log p by an exact forward on the same holes|, in nats.

    For tasks that decode with kept keys and values (what a cache is off) or leave out unlikely tokens (``top_k``, ``top_p``,
    ``min_p``: minus the log of the mass that was left, by which the likelihood's law is another one). One denoising step of each answer of the task's first
    unit, drawn by the window's ``number``. ``tasks`` as in ``log_exact_kl``.
    """
    # Spans that are noised together hold the finished answer, on which a thought was not drawn.
    joint = SPANS["r2i"] if pipe.args.r2i_noise == "joint" else ()
    for task in (own for own in canvas_tasks(tasks) if own not in joint):
        sampler = pipe.algorithms[task].sampler
        cached = getattr(sampler, "kv_cache", "none") not in EXACT
        differs = cached or getattr(sampler, "truncation", None) is not None
        unit, own = _unit_of(window, task)
        # What a token was written over is gone, and with it the state in which the others were drawn.
        differs = differs and getattr(sampler, "edit_threshold", None) is None
        if not differs or unit is None or pipe.policy.mask_token_id is None:
            continue
        key = (pipe.args.seed, number)
        before = [_at_one_step(window.experiences[index], pipe.policy, key) for index in unit.indices]
        batch = collate(before, Unit(tuple(range(len(before))), 0), 0, pipe.policy, pipe.device)
        settings = pipe.algorithms[batch.canvas.task].settings
        law = (settings.temperature, settings.rollout_guidance)
        with evaluating(pipe.model):
            scores = score_tokens(pipe.model, pipe.policy, batch.canvas, batch.hidden, batch.target, None, *law)
        gap = (scores.logps - batch.sampling_logps)[batch.target].abs()
        if own and gap.numel():
            metrics.add("sampling/decoding_gap/mean", gap.mean(), task, gap.numel())
            metrics.add("sampling/decoding_gap/max", gap.max(), task)


def _unit_of(window: Window, task: str) -> tuple[Unit | None, bool]:
    """The first unit of ``task``; without one, any unit, and False: its forwards only keep the ranks in step."""
    units = [unit for step in window.micro_batches for unit in step]
    own = [unit for unit in units if window.experiences[unit.indices[0]].task == task and not unit.dummy]
    return next(iter(own or units), None), bool(own)


def _at_one_step(experience: Experience, policy: DiffusionPolicy, key: tuple[int, int]) -> Experience:
    """The experience as it was before one of its denoising steps, or one of each block, which wrote what is scored."""
    canvas = Canvas(
        ids=experience.ids[None],
        fill_mask=experience.fill_mask[None],
        attention_mask=experience.attention_mask[None],
        task=experience.task,
        token_space=experience.token_space,
        position_ids=None if experience.position_ids is None else experience.position_ids[None],
    )
    rollout = Rollout(
        canvas=canvas,
        completion_mask=experience.completion_mask[None],
        step_map=experience.step_map[None],
        sampling_logps=experience.sampling_logps[None],
        completions=[],
    )
    (answer,) = answers(rollout, policy.blocks(canvas))
    if not bool(answer.completion.any()):
        # Left out of the loss: nothing of it is compared.
        return experience
    (draw,) = TrajectoryNoising().draws(answer, 0, 1, 1, (*key, experience.index))
    return replace(
        experience,
        hidden=draw.hidden[None, None],
        target=draw.target[None, None],
        weight=draw.target[None, None].float(),
        input_ids=None,
        old_logps=None,
        ref_logps=None,
    )
