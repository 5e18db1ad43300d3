"""From prompts to training data: sample groups, score them, compare within the group, draw noise, score the noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..algorithm.advantages import Advantages
from ..algorithm.noising import random_corruption
from ..models.base import DiffusionPolicy
from ..rollout.early_calls import EarlyCalls
from ..rollout.pipeline import Pipeline
from ..rollout.rewards import Scores
from ..rollout.sample import sample_answers
from ..types import TASKS, Experience, Noise, Rollout, Sample, is_picture, keyed_generator
from .diagnostics import window_metrics
from .metrics import Metrics, completion_metrics, has_stopped, reward_metrics, task_metrics
from .old_and_reference import add_old_and_reference, log_decoding_gap, log_exact_kl
from .scores import compare, count_alike, count_unreadable, count_unscored, local_slice, refill, score_answers
from .window import Window, cut_window


def make_experience(
    pipe: Pipeline, rows: list[dict[str, Any]], window: int, metrics: Metrics, unscored: int = 0
) -> Window:
    """One window of training data for this rank's dataset ``rows``, each of which stands there G times.

    Everything that an update needs is drawn here, before the first update of the window: noise for all inner updates,
    and the old and reference log-probabilities on it. Only the whole distributions of an exact KL are made beside each
    update, because they are too wide to keep. ``unscored`` is the last window's.
    """
    args, rewards = pipe.args, pipe.rewards
    early = EarlyCalls(pipe, rows)
    with metrics.timed("time/rollout"):
        shared = args.pictures_per_thought
        samples = sample_answers(pipe, rows, window, pictures_per_thought=shared, on_answers=early.on_answers)
    with metrics.timed("time/reward"):
        scores = score_answers(pipe, samples, metrics, early.begun)
    first = samples[0].row["prompt"]
    combining = rewards.combination, getattr(pipe.trainer_state, "global_step", 0)
    count_unreadable(rewards, args.num_generations, first, scores)
    advantages = compare(args, rewards.weights, scores.values, *combining)
    for attempt in range(args.refill_rounds):
        if not bool(advantages.equal.any()):
            break
        samples, scores = refill(pipe, samples, scores, advantages, window, attempt, metrics)
        advantages = compare(args, rewards.weights, scores.values, *combining)
    unscored = count_unscored(rewards, args.num_generations, first, scores.values, unscored, metrics)
    if not unscored:
        count_alike(rewards, args.num_generations, advantages)
    tasks = log_answers(pipe, samples, scores.values, advantages, metrics)
    noises = [[draw_noise(pipe, rollout, sample.index, window) for rollout in sample.rollouts] for sample in samples]
    local = local_slice(pipe.rank, len(samples))
    experiences = unpack_all(pipe, samples, noises, advantages, local)
    result = cut_window(pipe, experiences, window)
    with metrics.timed("time/old_and_reference"):
        add_old_and_reference(pipe, result)
        if args.log_exact_kl:
            log_exact_kl(pipe, result, tasks, metrics)
        log_decoding_gap(pipe, result, window, tasks, metrics)
    window_metrics(metrics, result.experiences)
    table = answer_table(rewards.names, samples, scores, scores.values[local], advantages.values[local])
    return replace(result, table=table, unscored=unscored)


def log_answers(
    pipe: Pipeline, samples: list[Sample], values: Tensor, advantages: Advantages, metrics: Metrics
) -> list[str]:
    """Metrics of the answers and their rewards; returns the task of each answer of all ranks."""
    numbers = torch.tensor([TASKS.index(sample.task) for sample in samples], device=pipe.device)
    tasks = [TASKS[number] for number in pipe.gather(numbers).tolist()]
    reward_metrics(metrics, pipe.rewards.names, values, advantages, pipe.args.num_generations, tasks)
    task_metrics(metrics, tasks, advantages.rewards)
    completion_metrics(
        metrics, [rollout for sample in samples for rollout in sample.rollouts], pipe.policy.stop_token_ids
    )
    return tasks


def leaves_out(pipe: Pipeline, rollout: Rollout) -> bool:
    """Whether a text was cut off and its task's ``mask_truncated_completions`` keeps such texts out of the loss."""
    task = rollout.canvas.task
    masks = not is_picture(task) and pipe.algorithms[task].settings.mask_truncated_completions
    return masks and not has_stopped(rollout, pipe.policy.stop_token_ids)


def draw_noise(pipe: Pipeline, rollout: Rollout, index: int, window: int) -> Noise:
    """The corruption of an answer, or of one span of it, for all inner updates, ``[1, K, S, L]``."""
    algorithm = pipe.algorithms[rollout.canvas.task]
    noise = algorithm.noising(
        rollout,
        num_iterations=pipe.args.num_iterations,
        num_samples=algorithm.settings.num_noise_samples,
        key=(pipe.args.seed, window),
        rows=[index],
        blocks=pipe.policy.blocks(rollout.canvas),
    )
    return corrupted(pipe.policy, noise, rollout, (pipe.args.seed, window, index))


def corrupted(policy: DiffusionPolicy, noise: Noise, rollout: Rollout, key: tuple[int | str, ...]) -> Noise:
    """``noise`` of one answer with random tokens at its hidden positions, for policies without a mask id."""
    if policy.mask_token_id is not None:
        return noise
    canvas, generator = rollout.canvas, keyed_generator("corruption", *key)
    noisy = random_corruption(noise.hidden[0].cpu(), canvas.ids[0].cpu(), canvas.token_space, generator=generator)
    return replace(noise, input_ids=noisy[None].to(canvas.ids.device))


def unpack_all(
    pipe: Pipeline, samples: list[Sample], noises: list[list[Noise]], advantages: Advantages, local: slice
) -> list[Experience]:
    """The training data of this rank's ``samples``, whose advantages are the ``local`` ones; an answer's spans are neighbours."""
    values, rewards = advantages.values[local].tolist(), advantages.rewards[local].tolist()
    experiences: list[Experience] = []
    for sample, noise, value, reward in zip(samples, noises, values, rewards, strict=True):
        shared = (sample.index, value, reward, pipe.policy.attends_padding)
        spans = [
            unpack(rollout, own, *shared, leaves_out(pipe, rollout))
            for rollout, own in zip(sample.rollouts, noise, strict=True)
        ]
        experiences += noised_together(spans) if pipe.args.r2i_noise == "joint" and len(spans) > 1 else spans
    return experiences


def noised_together(spans: list[Experience]) -> list[Experience]:
    """The spans of one answer, each scored on the finished answer with what any of them hides hidden.

    Raises:
        ValueError: spans with different numbers of draws.
    """
    draws = [own.hidden.shape[1] for own in spans]
    if len(set(draws)) > 1:
        raise ValueError(
            f"r2i_noise='joint' hides both spans of an answer in one draw, and {[own.task for own in spans]} have {draws} draws: "
            "give them the same noising and num_noise_samples"
        )
    written = torch.stack([own.fill_mask for own in spans]).any(dim=0)
    # A span is no prompt of the other one: what a noising hides of prompts is hidden outside both.
    hidden = torch.stack([own.hidden & (own.fill_mask | ~written) for own in spans]).any(dim=0)
    # Copies, because a checkpoint inside the window writes each tensor once.
    return [replace(own, ids=spans[-1].ids.clone(), hidden=hidden.clone()) for own in spans]


def unpack(
    rollout: Rollout,
    noise: Noise,
    index: int,
    advantage: float,
    reward: float,
    attends_padding: bool,
    left_out: bool = False,
) -> Experience:
    """The training data of an answer, or of a span, on the CPU, without its padding where that is masked anyway.

    Of one that is ``left_out`` of the loss no token counts and none is scored: it adds nothing to what losses divide by
    either, but stays one of their answers.
    """
    canvas = rollout.canvas
    keep = slice(None) if attends_padding else canvas.attention_mask[0].cpu().nonzero().squeeze(1)

    def own(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[0].cpu()[..., keep].clone()

    return Experience(
        ids=own(canvas.ids),
        attention_mask=own(canvas.attention_mask),
        fill_mask=own(canvas.fill_mask),
        completion_mask=own(rollout.completion_mask) & (not left_out),
        hidden=own(noise.hidden),
        target=own(noise.target) & (not left_out),
        weight=own(noise.weight) * (not left_out),
        input_ids=own(noise.input_ids),
        sampling_logps=own(rollout.sampling_logps),
        step_map=own(rollout.step_map),
        position_ids=own(canvas.position_ids),
        extra=canvas.extra,
        advantage=advantage,
        active=reward == reward,
        task=canvas.task,
        token_space=canvas.token_space,
        index=index,
    )


def answer_table(
    names: list[str], samples: list[Sample], scores: Scores, values: Tensor, advantages: Tensor
) -> dict[str, list]:
    """Columns of the completions table; ``values [B, F]`` and ``advantages [B]`` are those of ``samples``."""
    table = {
        "task": [sample.task for sample in samples],
        "prompt": [sample.row["prompt"] for sample in samples],
    }
    if any(sample.images for sample in samples):
        table["image"] = [sample.images[0] if sample.images else None for sample in samples]
    if any(sample.earlier for sample in samples):
        table["thought"] = [sample.thought for sample in samples]
    table["completion"] = [sample.completion for sample in samples]
    golds = [sample.row.get("solution") for sample in samples]
    if any(gold is not None for gold in golds):
        table["solution"] = golds
    for name, column in zip(names, values.T.tolist(), strict=True):
        table[name] = column
    for name, column in scores.extras.items():
        if len(column) == len(samples):
            table[name] = column
    return {**table, "advantage": advantages.tolist()}
