"""Rewards of a window's answers on all ranks, and the advantages that they give."""

from __future__ import annotations

import torch
from torch import Tensor

from ..algorithm.advantages import Advantages, group_advantages
from ..config.build import build_estimator
from ..errors import RewardError
from ..rollout.pipeline import Pipeline
from ..rollout.reward_faults import shown
from ..rollout.sample import Sample, sample_answers
from .metrics import Metrics


UNSCORED_PROMPTS = 16
"""So many prompts in a row without a single score end a run with ``reward_error`` "raise"."""


def score_answers(pipe: Pipeline, samples: list[Sample], metrics: Metrics) -> Tensor:
    """Raw rewards of all ranks' rows, ``[B_global, F]``."""
    return pipe.gather(own_scores(pipe, samples, metrics).to(pipe.device)).cpu()


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
        estimator=build_estimator(args),
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
    local, before = scores[local_slice(pipe, len(samples))].clone(), pipe.rewards.extras
    with metrics.timed("time/reward"):
        new_scores = own_scores(pipe, again, metrics)
    samples, extras = list(samples), {name: list(column) for name, column in before.items()}
    for place, i in enumerate(stale):
        samples[i], local[i] = again[place], new_scores[place]
        for name, column in pipe.rewards.extras.items():
            extras.setdefault(name, [None] * len(samples))[i] = column[place]
    pipe.rewards.extras = extras
    return samples, pipe.gather(local.to(pipe.device)).cpu()


def own_scores(pipe: Pipeline, samples: list[Sample], metrics: Metrics) -> Tensor:
    """Raw rewards ``[B, F]`` of this rank's ``samples``; all ranks call it together, and end together.

    A reward that failed as a whole on one rank counts on none: its answers would be compared with others of their group
    that have one reward more.

    Raises:
        RewardError: a reward failed, here or on another rank, and ``reward_error`` is "raise".
    """
    rewards, failure = pipe.rewards, None
    rewards.faults.take()
    try:
        scores = rewards.score([sample.answer for sample in samples], pipe.trainer_state)
    except Exception as error:
        failure, scores = error, torch.full((len(samples), len(rewards.names)), torch.nan)
    failed = torch.tensor([failure is not None])
    # One row a rank: whether it raised, which rewards failed as a whole, and its counts.
    report = torch.cat([failed, rewards.lost, rewards.faults.take().T.flatten()]).long()
    reports = pipe.gather(report[None].to(pipe.device)).cpu()
    if failure is not None:
        raise failure
    if bool(reports[:, 0].any()):
        ranks = reports[:, 0].nonzero().flatten().tolist()
        raise RewardError(f"a reward failed on another process; the message of rank {ranks[0]} says which and why")
    lost, errors, timeouts = reports[:, 1:].view(len(reports), 3, -1).sum(dim=0)
    rewards.lost = lost > 0
    scores[:, rewards.lost] = torch.nan
    if rewards.on_error != "raise":
        counts = torch.stack([errors, timeouts], dim=1)
        for name, count in rewards.faults.metrics(counts, rewards.timeout is not None).items():
            metrics.add(name, count)
    for name, values in rewards.metrics.items():
        metrics.add(name, sum(values) / len(values))
    return scores


def stop_unless_scored(pipe: Pipeline, samples: list[Sample], scores: Tensor, metrics: Metrics) -> None:
    """Counts windows in which no reward applies to any answer: they move no weights.

    A prompt whose solution cannot be read is no reason to end a run, and a window may have few prompts. So the run ends
    with ``UNSCORED_PROMPTS`` of them in a row, and with ``reward_error`` "none" it goes on.

    Raises:
        RewardError: on every rank, because ``scores`` are those of all ranks.
    """
    rewards = pipe.rewards
    if not bool(scores.isnan().all()):
        rewards.unscored = 0
        return
    metrics.add("num_unscored_windows", 1.0)
    rewards.unscored += len(scores) // pipe.args.num_generations
    said = f"no reward applies to any answer of a whole window: {rewards.names} gave None to all {len(scores)}"
    said += f", the first to the prompt {shown(samples[0].row['prompt'])}"
    if rewards.on_error == "raise" and rewards.unscored >= UNSCORED_PROMPTS:
        raise RewardError(
            f"{said}, and {rewards.unscored} prompts in a row were like that. Check that the dataset has the columns that "
            "the rewards read, and the tasks of the rewards, or set reward_error='none' to go on"
        )
    rewards.faults.warn(f"{said}. Such a window moves no weights; num_unscored_windows counts them", "unscored")
