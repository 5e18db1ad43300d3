"""What a run reports, under TRL's names."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .advantages import Advantages
from .losses import LossTerms
from .types import Rollout


class Metrics:
    """Values collected between two logs: means, except times and counts under ``time/`` and ``num_``, which add up."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = defaultdict(list)

    def add(self, name: str, value: float | Tensor) -> None:
        """Record one value; NaN is dropped."""
        value = float(value)
        if value == value:
            self._values[name].append(value)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the block's wall seconds."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def flush(self) -> dict[str, float]:
        """The aggregate of everything recorded since the last flush."""
        out = {}
        for name, values in sorted(self._values.items()):
            total = sum(values)
            out[name] = total if name.startswith(("time/", "num_")) else total / len(values)
        self._values.clear()
        return out


def reward_metrics(
    metrics: Metrics, names: list[str], scores: Tensor, advantages: Advantages, num_generations: int
) -> None:
    """``rewards/<name>/{mean,std}``, ``reward``, ``reward_std``, ``frac_reward_zero_std``."""
    for name, column in zip(names, scores.T, strict=True):
        applies = column[~column.isnan()]
        if len(applies):
            metrics.add(f"rewards/{name}/mean", applies.mean())
            metrics.add(f"rewards/{name}/std", applies.std() if len(applies) > 1 else 0.0)
    metrics.add("reward", advantages.rewards.nanmean())
    metrics.add("reward_std", advantages.group_std.mean())
    metrics.add("frac_reward_zero_std", advantages.equal[::num_generations].float().mean())


def task_metrics(metrics: Metrics, tasks: list[str], rewards: Tensor) -> None:
    """``reward/<task>`` of the tasks in a window; ``rewards [B]``, NaN where none applied."""
    for task in sorted(set(tasks)):
        metrics.add(f"reward/{task}", rewards[torch.tensor([own == task for own in tasks])].nanmean())


def completion_metrics(metrics: Metrics, rollouts: list[Rollout], stop_token_ids: tuple[int, ...]) -> None:
    """``completions/*`` lengths of texts; an answer without a stop token filled its canvas and counts as clipped.

    Images always fill their canvas, so they add to ``num_completion_tokens`` alone.
    """
    metrics.add("num_completion_tokens", sum(int(rollout.completion_mask.sum()) for rollout in rollouts))
    rollouts = [rollout for rollout in rollouts if rollout.canvas.task != "t2i"]
    if not rollouts:
        return
    stops = torch.tensor(stop_token_ids, dtype=torch.int64)
    lengths, stopped = [], []
    for rollout in rollouts:
        ids = rollout.canvas.ids[rollout.completion_mask].cpu()
        lengths.append(len(ids))
        stopped.append(bool(torch.isin(ids, stops).any()))
    counts = torch.tensor(lengths, dtype=torch.float32)
    ended = counts[torch.tensor(stopped)]
    for prefix, values in (("", counts), ("terminated_", ended)):
        if len(values):
            metrics.add(f"completions/mean_{prefix}length", values.mean())
            metrics.add(f"completions/min_{prefix}length", values.min())
            metrics.add(f"completions/max_{prefix}length", values.max())
    metrics.add("completions/clipped_ratio", 1.0 - sum(stopped) / len(stopped))


def loss_metrics(metrics: Metrics, terms: LossTerms, entropy: Tensor, target: Tensor, with_kl: bool) -> None:
    """``kl``, ``entropy``, ``clip_ratio/*`` and ``ratio/*`` of one unit."""
    if not terms.ratio.numel():
        return
    if with_kl:
        metrics.add("kl", terms.kl.mean())
    metrics.add("entropy", entropy[target].mean())
    metrics.add("clip_ratio/low_mean", terms.clipped_low.float().mean())
    metrics.add("clip_ratio/high_mean", terms.clipped_high.float().mean())
    metrics.add("clip_ratio/region_mean", (terms.clipped_low | terms.clipped_high).float().mean())
    metrics.add("ratio/mean", terms.ratio.mean())
    metrics.add("ratio/max", terms.ratio.max())
