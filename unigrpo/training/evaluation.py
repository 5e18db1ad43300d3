"""Held-out generation, and accuracy with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.build import held_out_sampler
from ..rollout.pipeline import Pipeline
from ..rollout.rewards import RewardSet, Scores
from ..rollout.sample import sample_answers
from ..types import Sample
from .metrics import Metrics, completion_metrics
from .scores import own_scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """A mean of 0/1 outcomes with its 95 % percentile-bootstrap interval over ``count`` problems."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] on {self.count}"


def bootstrap(outcomes: list[bool] | list[float], draws: int = 2000, seed: int = 0) -> Accuracy:
    """Mean and 95 % percentile-bootstrap interval of per-problem outcomes."""
    if not len(outcomes):
        raise ValueError("no outcomes to average: the evaluation set is empty")
    values = np.asarray(outcomes, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(values), size=(draws, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return Accuracy(mean=float(values.mean()), low=float(low), high=float(high), count=len(values))


def eval_pipeline(pipe: Pipeline) -> Pipeline:
    """The pipeline with held-out sampling: ``eval_sampler``, ``eval_denoising_steps`` and ``eval_temperature``.

    Decoding is exact whatever the rollouts do: held-out numbers are the policy's. ``unigrpo agreement`` has the others.
    """
    held_out = {task: replace(own, sampler=held_out_sampler(own.settings)) for task, own in pipe.algorithms.items()}
    return replace(pipe, algorithms=held_out)


def held_out_answers(
    pipe: Pipeline,
    rows: list[dict[str, Any]],
    generations: int,
    batch_size: int,
    on_batch: Callable | None = None,
    metrics: Metrics | None = None,
) -> list[Sample]:
    """``generations`` answers to each row, in order, scored batch by batch; ranks share the batches, and all get all answers.

    Streams depend on the run's seed and the row, not on the step or the rank. What rewards log and get wrong goes to
    ``metrics``.

    Raises:
        RewardError: on every rank, as ``own_scores``.
    """
    metrics = Metrics() if metrics is None else metrics
    pipe = eval_pipeline(pipe)
    repeated = [row for row in rows for _ in range(generations)]
    starts = range(0, len(repeated), batch_size)
    samples: list[Sample] = []
    # A rank that is out of batches takes part in the others' forwards, where forwards wait for all ranks.
    for turn in range(0, len(starts), pipe.ranks):
        own = turn + pipe.rank
        batch = starts[own : own + 1]
        indices = [index for start in batch for index in range(start, min(start + batch_size, len(repeated)))]
        answered = sample_answers(pipe, [repeated[index] for index in indices], 0, indices=indices, stream="eval")
        scores = own_scores(pipe, answered, metrics)
        # The pictures of the prompts are let go: a held-out set of photos would not fit into memory.
        samples += [_kept(own, place, scores) for place, own in enumerate(answered)]
        if on_batch is not None:
            on_batch(min((turn + pipe.ranks) * batch_size, len(repeated)), len(repeated))
    return sorted(pipe.gather_objects(samples), key=lambda sample: sample.index)


def _kept(sample: Sample, place: int, scores: Scores) -> Sample:
    """The sample with its scores, the ones at ``place``, on the CPU, without its prompt's pictures."""
    earlier, rollout = tuple(own.to("cpu") for own in sample.earlier), sample.rollout.to("cpu")
    return replace(
        sample, earlier=earlier, rollout=rollout, scores=scores.values[place], lost=scores.lost, images=None
    )


def comparable(lost: Tensor) -> Tensor:
    """The answers ``[B]`` bool whose summed rewards can be averaged; ``lost [B, F]``: rewards that failed to score them.

    A sum without one of its rewards is no smaller reward. So those that lost the fewest rewards, and the same ones as the
    first of them.
    """
    fewest = lost[lost.sum(dim=1).argmin()]
    return (lost == fewest).all(dim=1)


def reward_summary(
    rewards: RewardSet,
    stop_token_ids: tuple[int, ...],
    samples: list[Sample],
    prefix: str,
    metrics: Metrics | None = None,
) -> dict[str, float]:
    """``<prefix>_reward``, ``<prefix>_rewards/<name>/mean``, completion lengths, and what ``metrics`` holds already.

    With ``reward_error`` "none" the reward is NaN where none applies to any answer.

    Raises:
        ValueError: none applies, and ``reward_error`` is "raise".
    """
    metrics = Metrics() if metrics is None else metrics
    scores = torch.stack([sample.scores for sample in samples])
    for name, column in zip(rewards.names, scores.T, strict=True):
        if not bool(column.isnan().all()):
            metrics.add(f"rewards/{name}/mean", column.nanmean())
    compared = scores[comparable(torch.stack([sample.lost for sample in samples]))]
    weighted = (compared * torch.tensor(rewards.weights)).nansum(dim=1)
    scored = weighted[(~compared.isnan()).any(dim=1)]
    if not len(scored) and rewards.on_error == "raise":
        raise ValueError(f"no reward applies to any held-out answer: {rewards.names} all returned None")
    if len(scored):
        metrics.add("reward", scored.mean())
    completion_metrics(metrics, [rollout for sample in samples for rollout in sample.rollouts], stop_token_ids)
    found = {"reward": math.nan, **metrics.flush()}
    return {f"{prefix}_{name}": value for name, value in found.items()}
