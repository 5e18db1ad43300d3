"""Rewards of a window's answers on all ranks, and the advantages that they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..algorithm.advantages import Advantages, group_advantages
from ..algorithm.combining import Combination
from ..config.arguments import UniGRPOConfig
from ..config.build import build_estimator
from ..errors import RewardError
from ..rollout.early_calls import EarlyCalls
from ..rollout.pipeline import Pipeline
from ..rollout.reward_calls import Begun
from ..rollout.reward_faults import fault_metrics, shown
from ..rollout.rewards import RewardSet, Scores
from ..rollout.sample import sample_answers
from ..types import Sample
from .metrics import LATENCY, Metrics


UNSCORED_PROMPTS = 16
"""So many prompts in a row without a single score end a run with ``reward_error`` "raise", and a first warning comes with so
many whose answers were all rewarded alike."""


def score_answers(pipe: Pipeline, samples: list[Sample], metrics: Metrics, begun: Sequence[Begun] = ()) -> Scores:
    """The scores of this rank's ``samples``, with the values of all ranks' answers, ``[B_global, F]``."""
    scores = own_scores(pipe, samples, metrics, begun)
    return replace(scores, values=pipe.gather(scores.values.to(pipe.device)).cpu())


def compare(
    args: UniGRPOConfig, weights: list[float], values: Tensor, combination: Combination | None = None, step: int = 0
) -> Advantages:
    """Group-relative advantages of all ranks' answers; ``weights`` are the rewards'.

    Where a ``combination`` changes scores and, at optimizer step ``step``, weights, the advantages are made of those, and the
    ``rewards`` beside them are still the weighted raw ones: win rates and standardised scores have the same mean in every window.
    """
    given = torch.tensor(weights, dtype=torch.float32)
    entered = values if combination is None else combination(values, args.num_generations)
    found = group_advantages(
        entered,
        given if combination is None else given * combination.factors(step),
        args.num_generations,
        args.scale_rewards,
        args.multi_objective_aggregation,
        estimator=build_estimator(args),
        clip=args.advantage_clip,
    )
    if combination is None:
        return found
    return replace(found, rewards=(values * given).nansum(dim=1).masked_fill(found.rewards.isnan(), torch.nan))


def local_slice(rank: int, count: int) -> slice:
    """The ``count`` answers of ``rank`` in a gathered tensor."""
    return slice(rank * count, (rank + 1) * count)


def refill(
    pipe: Pipeline,
    samples: list[Sample],
    scores: Scores,
    advantages: Advantages,
    window: int,
    attempt: int,
    metrics: Metrics,
) -> tuple[list[Sample], Scores]:
    """Groups of equal rewards replaced by fresh prompts; every rank draws the same ones."""
    group = pipe.args.num_generations
    stale = [i for i, sample in enumerate(samples) if bool(advantages.equal[sample.index])]
    metrics.add("refilled_groups", float(advantages.equal.float().sum()) / group)
    fresh = [pipe.new_prompt(window, attempt, samples[i].index // group) for i in stale]
    indices = [samples[i].index for i in stale]
    early = EarlyCalls(pipe, fresh, indices)
    with metrics.timed("time/rollout"):
        together = {"pictures_per_thought": pipe.args.pictures_per_thought, "on_answers": early.on_answers}
        again = sample_answers(pipe, fresh, window, indices=indices, stream=f"refill-{attempt}", **together)
    local = scores.values[local_slice(pipe.rank, len(samples))].clone()
    with metrics.timed("time/reward"):
        new = own_scores(pipe, again, metrics, early.begun)
    samples, extras = list(samples), {name: list(column) for name, column in scores.extras.items()}
    for place, i in enumerate(stale):
        samples[i], local[i] = again[place], new.values[place]
        for name, column in new.extras.items():
            extras.setdefault(name, [None] * len(samples))[i] = column[place]
    return samples, replace(new, values=pipe.gather(local.to(pipe.device)).cpu(), extras=extras)


def own_scores(pipe: Pipeline, samples: list[Sample], metrics: Metrics, begun: Sequence[Begun] = ()) -> Scores:
    """The scores of this rank's ``samples``, some of them ``begun``; all ranks call it together, and end together.

    A reward that failed as a whole on one rank counts on none: its answers would be compared with others of their group
    that have one reward more.

    Raises:
        RewardError: a reward failed, here or on another rank, and ``reward_error`` is "raise".
    """
    rewards, failure = pipe.rewards, None
    try:
        scores = rewards.score(samples, pipe.trainer_state, begun)
    except Exception as error:
        failure, scores = error, Scores.none(len(samples), len(rewards.names))
    failed = torch.tensor([failure is not None])
    # One row a rank: whether it raised, which rewards failed as a whole, and its counts.
    report = torch.cat([failed, scores.lost, scores.faults.T.flatten(), scores.unreadable]).long()
    reports = pipe.gather(report[None].to(pipe.device)).cpu()
    if failure is not None:
        raise failure
    if bool(reports[:, 0].any()):
        ranks = reports[:, 0].nonzero().flatten().tolist()
        raise RewardError(f"a reward failed on another process; the message of rank {ranks[0]} says which and why")
    lost, errors, timeouts, unreadable = reports[:, 1:].view(len(reports), 4, -1).sum(dim=0)
    values = scores.values.masked_fill(lost > 0, torch.nan)
    if rewards.on_error != "raise":
        counts = torch.stack([errors, timeouts], dim=1)
        for name, count in fault_metrics(rewards.names, counts, rewards.timeout is not None).items():
            metrics.add(name, count)
    for name, logged in scores.metrics.items():
        metrics.add(name, sum(logged) / len(logged))
    for name, seconds in scores.seconds.items():
        if seconds:
            metrics.add(f"{LATENCY}{name}", sum(seconds) / len(seconds), weight=len(seconds))
    return replace(scores, values=values, lost=lost > 0, unreadable=unreadable)


def count_unreadable(rewards: RewardSet, num_generations: int, prompt: Any, scores: Scores) -> None:
    """Counts the solutions of a window that rewards cannot read; ``prompt`` is its first. ``scores`` are those of all ranks.

    Most of a window: a warning, once. All of ``UNSCORED_PROMPTS`` prompts: the run ends, however many other rewards there
    are, unless ``reward_error`` is "none".

    Raises:
        RewardError: on every rank.
    """
    for place, unread in enumerate(scores.unreadable.tolist()):
        read = int((~scores.values[:, place].isnan()).sum())
        before = rewards.golds.get(place, (0, 0))
        rewards.golds[place] = before[0] + unread, before[1] + read
        if unread > read:
            rewards.warn(
                f"{rewards.names[place]} cannot read the solution of {unread} of {unread + read} answers of a window, whose "
                f"first prompt is {shown(prompt)}. Such answers teach nothing; `unigrpo check` shows the solutions",
                "unreadable",
                rewards.names[place],
            )
    refuse_unreadable(rewards, UNSCORED_PROMPTS * num_generations)


def refuse_unreadable(rewards: RewardSet, answers: int) -> None:
    """Ends a run in which a reward has read no solution of at least ``answers`` answers.

    Raises:
        RewardError: there is such a reward, and ``reward_error`` is "raise".
    """
    for place, (unread, read) in rewards.golds.items():
        if rewards.on_error == "raise" and unread >= max(answers, 1) and not read:
            raise RewardError(
                f"{rewards.names[place]} could not read the solution of any of the {unread} answers so far. Check that "
                "column_map.solution names the right column, and see rewards/README.md for what can be read"
            )


def count_unscored(
    rewards: RewardSet, num_generations: int, prompt: Any, values: Tensor, before: int, metrics: Metrics
) -> int:
    """Prompts in a row without a single score, ``before`` those of this window; ``prompt`` is its first.

    A window in which no reward applies to any answer moves no weights, and is counted. A prompt whose solution cannot be
    read is no reason to end a run, and a window may have few prompts. So the run ends with ``UNSCORED_PROMPTS`` of them in
    a row, and with ``reward_error`` "none" it goes on.

    Raises:
        RewardError: on every rank, because ``values`` are those of all ranks.
    """
    if not bool(values.isnan().all()):
        return 0
    metrics.add("num_unscored_windows", 1.0)
    unscored = before + len(values) // num_generations
    said = f"no reward applies to any answer of a whole window: {rewards.names} gave None to all {len(values)}"
    said += f", the first to the prompt {shown(prompt)}"
    if rewards.on_error == "raise" and unscored >= UNSCORED_PROMPTS:
        raise RewardError(
            f"{said}, and {unscored} prompts in a row were like that. Check that the dataset has the columns that "
            "the rewards read, and the tasks of the rewards, or set reward_error='none' to go on"
        )
    rewards.warn(f"{said}. Such a window moves no weights; num_unscored_windows counts them", "unscored")
    return unscored


def count_alike(rewards: RewardSet, num_generations: int, advantages: Advantages) -> None:
    """Warns once of a run whose first ``UNSCORED_PROMPTS`` prompts all taught nothing: each one's answers were rewarded alike.

    ``advantages`` are those of all ranks, some of them scored. One that differs from 0, ever, and nothing is said.
    """
    if rewards.alike is None or bool(advantages.values.any()):
        rewards.alike = None
        return
    rewards.alike += len(advantages.values) // num_generations
    if rewards.alike >= UNSCORED_PROMPTS:
        rewards.warn(
            f"all answers to each of the first {rewards.alike} prompts were rewarded alike, so nothing was learned: "
            "frac_reward_zero_std is the share of such prompts, and TROUBLESHOOTING.md says what to do about them",
            "alike",
        )
