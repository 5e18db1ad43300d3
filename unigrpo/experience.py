"""From prompts to training data: sample groups, score them, compare within the group, draw noise, score the noise."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .advantages import Advantages, group_advantages
from .algorithms import Algorithm
from .diagnostics import thinned, window_metrics
from .likelihood import score_tokens, token_logprobs
from .metrics import Metrics, completion_metrics, reward_metrics, task_metrics
from .models.base import DiffusionPolicy
from .noising import random_corruption
from .rng import keyed_generator
from .sampling import Pipeline, Sample, evaluating, sample_answers
from .types import TASKS, Experience, Noise, Rollout
from .units import Mixing, Unit, collate, count_scored, cut_units, pad_units


@dataclass(slots=True, kw_only=True)
class Window:
    """All rows of one rollout on this rank, cut into units by micro-batch.

    Attributes:
        rows: training data in sampling order.
        order: the shuffled row indices that micro-batches are cut from.
        micro_batches: ``steps_per_generation`` lists of units.
        local_tokens, step_tokens: ``[micro-steps, K, tasks, 2]`` fp64, scored tokens and rows of each task, rows without
            a reward included: of this rank's micro-batch, and of the whole optimizer step on all ranks.
        table: the window's answers as columns, for the completions table; empty after a resume.
    """

    rows: list[Experience]
    order: list[int]
    micro_batches: list[list[Unit]]
    local_tokens: Tensor
    step_tokens: Tensor
    table: dict[str, list] = field(default_factory=dict)

    def tokens_per_row(self, loss_type: str, step: int, k: int, task: str) -> float:
        """Mean scored tokens of a row of ``task`` in micro-step ``step``: of its optimizer step, for ``"bnpo"`` its own."""
        counted = self.local_tokens if loss_type == "bnpo" else self.step_tokens
        tokens, rows = counted[step, k, TASKS.index(task)].tolist()
        return max(tokens, 1.0) / max(rows, 1.0)


def make_experience(pipe: Pipeline, prompts: list[dict[str, Any]], window: int, metrics: Metrics) -> Window:
    """One window of training data for this rank's ``prompts``, each of which stands G times in a row.

    Everything that an update needs is drawn here, before the first update of the window: noise for all inner updates,
    and the old and reference log-probabilities on it. Only the whole distributions of an exact KL are made beside each
    update, because they are too wide to keep.
    """
    with metrics.timed("time/rollout"):
        samples = sample_answers(pipe, prompts, window)
    with metrics.timed("time/reward"):
        scores = score_answers(pipe, samples, metrics)
    advantages = compare(pipe, scores)
    for attempt in range(pipe.args.refill_rounds):
        if not bool(advantages.equal.any()):
            break
        samples, scores = refill(pipe, samples, scores, advantages, window, attempt, metrics)
        advantages = compare(pipe, scores)
    local = local_slice(pipe, len(samples))
    tasks = log_answers(pipe, samples, scores, advantages, metrics)
    rows = [
        unpack(pipe, sample, draw_noise(pipe, sample, window), advantage, reward)
        for sample, advantage, reward in zip(
            samples, advantages.values[local].tolist(), advantages.rewards[local].tolist(), strict=True
        )
    ]
    result = cut_window(pipe, rows, window)
    with metrics.timed("time/old_and_reference"):
        add_old_and_reference(pipe, result)
        if pipe.args.log_exact_kl:
            log_exact_kl(pipe, result, tasks, metrics)
    window_metrics(metrics, result.rows)
    result.table = answer_table(pipe, samples, scores[local], advantages.values[local])
    return result


def log_answers(
    pipe: Pipeline, samples: list[Sample], scores: Tensor, advantages: Advantages, metrics: Metrics
) -> list[str]:
    """Metrics of the answers and their rewards; returns the task of each row of all ranks."""
    own = [sample.rollout.canvas.task for sample in samples]
    numbers = torch.tensor([TASKS.index(task) for task in own], device=pipe.device)
    tasks = [TASKS[number] for number in pipe.gather(numbers).tolist()]
    reward_metrics(metrics, pipe.rewards.names, scores, advantages, pipe.args.num_generations, tasks)
    task_metrics(metrics, own, advantages.rewards[local_slice(pipe, len(samples))])
    completion_metrics(metrics, [sample.rollout for sample in samples], pipe.policy.stop_token_ids)
    return tasks


def score_answers(pipe: Pipeline, samples: list[Sample], metrics: Metrics) -> Tensor:
    """Raw rewards of all ranks' rows, ``[B_global, F]``."""
    scores = pipe.rewards.score([sample.answer for sample in samples], pipe.trainer_state)
    for name, values in pipe.rewards.metrics.items():
        metrics.add(name, sum(values) / len(values))
    return pipe.gather(scores.to(pipe.device)).cpu()


def compare(pipe: Pipeline, scores: Tensor) -> Advantages:
    """Group-relative advantages of all ranks' rows."""
    args = pipe.args
    weights = torch.tensor(pipe.rewards.weights, dtype=torch.float32)
    return group_advantages(
        scores,
        weights,
        args.num_generations,
        args.scale_rewards,
        args.multi_objective_aggregation,
        estimator=args.advantage_estimator,
        temperature=args.advantage_temperature,
        clip=args.advantage_clip,
    )


def local_slice(pipe: Pipeline, count: int) -> slice:
    """This rank's rows in a gathered tensor."""
    return slice(pipe.rank * count, (pipe.rank + 1) * count)


def refill(
    pipe: Pipeline,
    samples: list[Sample],
    scores: Tensor,
    advantages: Advantages,
    window: int,
    attempt: int,
    metrics: Metrics,
) -> tuple[list[Sample], Tensor]:
    """Groups of equal rewards replaced by fresh prompts; every rank draws the same ones."""
    group = pipe.args.num_generations
    stale = [i for i, sample in enumerate(samples) if bool(advantages.equal[sample.index])]
    metrics.add("refilled_groups", float(advantages.equal.float().sum()) / group)
    fresh = [pipe.new_prompt(window, attempt, samples[i].index // group) for i in stale]
    indices = [samples[i].index for i in stale]
    with metrics.timed("time/rollout"):
        again = sample_answers(pipe, fresh, window, indices=indices, stream=f"refill-{attempt}")
    local = scores[local_slice(pipe, len(samples))].clone()
    new_scores = pipe.rewards.score([sample.answer for sample in again], pipe.trainer_state)
    samples = list(samples)
    for place, i in enumerate(stale):
        samples[i], local[i] = again[place], new_scores[place]
    return samples, pipe.gather(local.to(pipe.device)).cpu()


def draw_noise(pipe: Pipeline, sample: Sample, window: int) -> Noise:
    """The row's corruption for all inner updates, ``[1, K, S, L]``."""
    canvas = sample.rollout.canvas
    algorithm = pipe.algorithms[canvas.task]
    noise = algorithm.noising(
        sample.rollout,
        num_iterations=pipe.args.num_iterations,
        num_samples=algorithm.settings.num_noise_samples,
        key=(pipe.args.seed, window),
        rows=[sample.index],
    )
    return corrupted(pipe.policy, noise, sample.rollout, (pipe.args.seed, window, sample.index))


def corrupted(policy: DiffusionPolicy, noise: Noise, rollout: Rollout, key: tuple[int | str, ...]) -> Noise:
    """``noise`` of one row with random tokens at its hidden positions, for policies without a mask id."""
    if policy.mask_token_id is not None:
        return noise
    canvas, generator = rollout.canvas, keyed_generator("corruption", *key)
    noisy = random_corruption(noise.hidden[0].cpu(), canvas.ids[0].cpu(), canvas.token_space, generator=generator)
    return replace(noise, input_ids=noisy[None].to(canvas.ids.device))


def unpack(pipe: Pipeline, sample: Sample, noise: Noise, advantage: float, reward: float) -> Experience:
    """One row on the CPU, without its padding where padding is masked anyway."""
    rollout, canvas = sample.rollout, sample.rollout.canvas
    keep = slice(None) if pipe.policy.attends_padding else canvas.attention_mask[0].cpu().nonzero().squeeze(1)

    def row(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[0].cpu()[..., keep].clone()

    return Experience(
        ids=row(canvas.ids),
        attention_mask=row(canvas.attention_mask),
        fill_mask=row(canvas.fill_mask),
        completion_mask=row(rollout.completion_mask),
        hidden=row(noise.hidden),
        target=row(noise.target),
        weight=row(noise.weight),
        input_ids=row(noise.input_ids),
        sampling_logps=row(rollout.sampling_logps),
        step_map=row(rollout.step_map),
        position_ids=row(canvas.position_ids),
        extra=canvas.extra,
        advantage=advantage,
        active=reward == reward,
        task=canvas.task,
        token_space=canvas.token_space,
        index=sample.index,
    )


def cut_window(pipe: Pipeline, rows: list[Experience], window: int) -> Window:
    """Rows shuffled, dealt to micro-batches and cut into units; every rank gets the same number of units."""
    generator = keyed_generator("order", pipe.args.seed, window, pipe.rank)
    return rebuild_window(pipe, rows, torch.randperm(len(rows), generator=generator).tolist())


def rebuild_window(pipe: Pipeline, rows: list[Experience], order: list[int]) -> Window:
    """The window of ``rows`` in a known ``order``; a resume and a fresh window share this path."""
    steps = pipe.args.steps_per_generation
    size = len(order) // steps
    dealt = [order[step * size : (step + 1) * size] for step in range(steps)]
    moves = steps * pipe.args.num_iterations > pipe.args.gradient_accumulation_steps
    units = cut_units(rows, dealt, pipe.policy, {task: mixing(own, moves) for task, own in pipe.algorithms.items()})
    counts = torch.tensor([[len(unit) for unit in units]], device=pipe.device)
    everyone = pipe.gather(counts)
    if len(everyone) > 1:
        units = pad_units(units, everyone.amax(dim=0).clamp(min=1).tolist(), rows)
    local = count_tokens(pipe, rows, dealt)
    every = pipe.args.gradient_accumulation_steps
    step = local.view(-1, every, *local.shape[1:]).sum(dim=1)
    step = pipe.gather(step.to(pipe.device)[None]).cpu().sum(dim=0).repeat_interleave(every, dim=0)
    return Window(rows=rows, order=order, micro_batches=units, local_tokens=local, step_tokens=step)


def mixing(algorithm: Algorithm, policy_moves: bool) -> Mixing:
    """What cutting has to know of ``algorithm``; ``policy_moves`` = a window has more than one optimizer step.

    k2 and k3 to the old policy and their gradients are 0 where the policy is still the old one.
    """
    settings = algorithm.settings
    felt = settings.needs_reference or policy_moves or settings.kl_estimator == "k1"
    return Mixing(
        beta=settings.beta if felt else 0.0, mixes_draws=algorithm.mixes_draws, tokenwise=algorithm.tokenwise
    )


def count_tokens(pipe: Pipeline, rows: list[Experience], dealt: list[list[int]]) -> Tensor:
    """``Window.local_tokens``: tokens by which ``"bnpo"`` and ``"dapo"`` divide."""
    counts = torch.zeros(len(dealt), pipe.args.num_iterations, len(TASKS), 2)
    for step, indices in enumerate(dealt):
        for row in (rows[index] for index in indices):
            algorithm, place = pipe.algorithms[row.task], TASKS.index(row.task)
            whole = algorithm.loss.normalization == "completion"
            for k in range(pipe.args.num_iterations):
                scored = float(row.completion_mask.sum()) if whole else count_scored(row, k, algorithm.mixes_draws)
                counts[step, k, place] += torch.tensor([scored, 1.0])
    return counts


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


def answer_table(pipe: Pipeline, samples: list[Sample], scores: Tensor, advantages: Tensor) -> dict[str, list]:
    """Columns of the completions table."""
    table = {
        "task": [sample.rollout.canvas.task for sample in samples],
        "prompt": [sample.row["prompt"] for sample in samples],
        "completion": [sample.rollout.completions[0] for sample in samples],
    }
    for name, column in zip(pipe.rewards.names, scores.T.tolist(), strict=True):
        table[name] = column
    for name, column in pipe.rewards.extras.items():
        if len(column) == len(samples):
            table[name] = column
    return {**table, "advantage": advantages.tolist()}
