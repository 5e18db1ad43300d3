"""What a run reports, under TRL's names."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..algorithm.advantages import Advantages, group_moments
from ..models.placing import on_host
from ..types import Rollout, is_picture


LATENCY = "time/latency/"
"""Beginning of the metric with the mean seconds of one call of a reward."""


class Metrics:
    """Values collected between two logs, and how they become one number, over all processes.

    Means are weighted by what a value was made of, so that they do not depend on how answers were divided. Counts and seconds
    add up: what begins with ``time/`` or ``num_``, and what rewards did wrong (``rewards/<name>/errors``, ``timeouts``).
    ``min`` and ``max`` of ratios, completions and sampling are those of everything.

    Args:
        by_task: the run has several tasks, so that what is told apart by task is also logged as ``NAME/TASK``.
    """

    def __init__(self, by_task: bool = False) -> None:
        self.by_task = by_task
        self._values: dict[str, list[list[float]]] = defaultdict(list)
        self._unread: list[tuple[str, list]] = []

    def add(self, name: str, value: float | Tensor, task: str | None = None, weight: float = 1.0) -> None:
        """Record one value, of ``task`` alone where one is given; NaN is dropped. ``weight``: things it is the mean of.

        A value on a device is read later, all of them at once: the host does not wait for each.
        """
        names = [name, *([f"{name}/{task}"] if task is not None and self.by_task else [])]
        if isinstance(value, Tensor) and not on_host(value):
            for own in names:
                entry = [value.detach(), float(weight)]
                self._values[own].append(entry)
                self._unread.append((own, entry))
            return
        value = float(value)
        if value == value:
            for own in names:
                self._values[own].append([value, float(weight)])

    def _read(self) -> None:
        """Values that wait on a device become numbers, in one copy."""
        if not self._unread:
            return
        numbers = torch.stack([entry[0].double() for _, entry in self._unread]).tolist()
        for (_, entry), number in zip(self._unread, numbers, strict=True):
            entry[0] = number
        for name in {name for name, _ in self._unread}:
            self._values[name] = [entry for entry in self._values[name] if entry[0] == entry[0]]
            if not self._values[name]:
                del self._values[name]
        self._unread = []

    def scopes(self, tasks: list[str]) -> Iterator[tuple[str, Tensor]]:
        """What a metric of answers with these ``tasks`` is made of: the suffix of its name and ``[B]`` bool, the answers.

        All under the plain name, then those of each task where the run has several.
        """
        yield "", torch.ones(len(tasks), dtype=torch.bool)
        for task in sorted(set(tasks)) if self.by_task else ():
            yield f"/{task}", torch.tensor([own == task for own in tasks])

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the block's wall seconds."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def pending(self) -> dict[str, list[list[float]]]:
        """Everything recorded since the last flush, values with their weights, for a checkpoint."""
        self._read()
        return {name: list(values) for name, values in self._values.items()}

    def restore(self, pending: dict[str, list[list[float]]]) -> None:
        """Goes on from ``pending`` values, whatever was recorded before."""
        self._values.clear()
        self._unread = []
        self._values.update({name: list(values) for name, values in pending.items()})

    def flush(self, gather: Callable[[list], list] = lambda items: items) -> dict[str, float]:
        """The aggregate of everything recorded since the last flush; ``gather`` joins the lists of all processes."""
        ranks = gather([self.pending()])
        names = sorted({name for rank in ranks for name in rank})
        self._values.clear()
        return {name: aggregate(name, [rank[name] for rank in ranks if name in rank]) for name in names}


def aggregate(name: str, ranks: list[list[list[float]]]) -> float:
    """One number from the values and weights that each process recorded under ``name``."""
    if adds_up(name):
        totals = [sum(value for value, _ in own) for own in ranks]
        # Seconds pass for all at once, and counts of the whole window are known to all; tokens are each process's own.
        return sum(totals) if name == "num_completion_tokens" else sum(totals) / len(totals)
    values = [pair for own in ranks for pair in own]
    bound = extreme(name)
    if bound is not None:
        return bound(value for value, _ in values)
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)


def adds_up(name: str) -> bool:
    """Whether a metric is a count or a time in all, not a mean."""
    if name.startswith(LATENCY):
        return False
    faults = name.startswith("rewards/") and name.endswith(("/errors", "/timeouts"))
    return faults or name.startswith(("time/", "num_"))


def extreme(name: str) -> Callable[[Iterable[float]], float] | None:
    """``min`` or ``max`` for a metric that is one; rewards may be called anything."""
    if not name.startswith(("ratio/", "completions/", "sampling/")):
        return None
    parts = name.split("/")[1:]
    return next((kind for kind in (min, max) for part in parts if part.split("_")[0] == kind.__name__), None)


def reward_metrics(
    metrics: Metrics,
    names: list[str],
    scores: Tensor,
    advantages: Advantages,
    num_generations: int,
    tasks: list[str],
) -> None:
    """``rewards/<name>/{mean,std,group_std,frac_none,frac_ties}``, ``reward``, ``reward_std``, ``frac_reward_zero_std`` of all ranks' answers.

    ``group_std`` is the mean over groups of the reward's std inside a group, of the groups with two scores and more:
    what is left of a reward's spread once the prompts are the same. ``frac_ties`` is the share of these groups whose scores are
    all equal, ``frac_none`` that of the answers without a score.
    """
    for name, column in zip(names, scores.T, strict=True):
        applies = column[~column.isnan()]
        if len(applies):
            metrics.add(f"rewards/{name}/std", applies.double().std() if len(applies) > 1 else 0.0)
    metrics.add("reward", advantages.rewards.nanmean())
    for suffix, own in metrics.scopes(tasks):
        for name, column in zip(names, scores[own].T, strict=True):
            groups = column.view(-1, num_generations)
            _, std = group_moments(groups)
            compared = (~groups.isnan()).sum(dim=1) > 1
            metrics.add(f"rewards/{name}/mean{suffix}", column.nanmean())
            metrics.add(f"rewards/{name}/group_std{suffix}", std.squeeze(1)[compared].mean())
            metrics.add(f"rewards/{name}/frac_none{suffix}", column.isnan().double().mean())
            spread = groups.nan_to_num(-torch.inf).amax(dim=1) - groups.nan_to_num(torch.inf).amin(dim=1)
            metrics.add(f"rewards/{name}/frac_ties{suffix}", (spread[compared] == 0).double().mean())
        metrics.add(f"reward_std{suffix}", advantages.group_std[own].mean())
        metrics.add(f"frac_reward_zero_std{suffix}", advantages.equal[own][::num_generations].float().mean())


def task_metrics(metrics: Metrics, tasks: list[str], rewards: Tensor) -> None:
    """``reward/<task>`` of the tasks in a window; ``rewards [B]``, NaN where none applied."""
    for task in sorted(set(tasks)):
        metrics.add(f"reward/{task}", rewards[torch.tensor([own == task for own in tasks])].nanmean())


def has_stopped(rollout: Rollout, stop_token_ids: tuple[int, ...]) -> bool:
    """Whether the one answer of ``rollout`` wrote a stop token; a text without one was cut off by its canvas."""
    ids = rollout.canvas.ids[rollout.completion_mask].cpu()
    return bool(torch.isin(ids, torch.tensor(stop_token_ids, dtype=torch.int64)).any())


def completion_metrics(metrics: Metrics, rollouts: list[Rollout], stop_token_ids: tuple[int, ...]) -> None:
    """``completions/*`` lengths of texts; an answer without a stop token filled its canvas and counts as clipped.

    Images always fill their canvas, so they add to ``num_completion_tokens`` alone. What several answers share was written once
    and counts once: the thought of ``pictures_per_thought`` pictures.
    """
    rollouts = list({id(rollout): rollout for rollout in rollouts}.values())
    metrics.add("num_completion_tokens", sum(int(rollout.completion_mask.sum()) for rollout in rollouts))
    rollouts = [rollout for rollout in rollouts if not is_picture(rollout.canvas.task)]
    if not rollouts:
        return
    lengths = [int(rollout.completion_mask.sum()) for rollout in rollouts]
    stopped = [has_stopped(rollout, stop_token_ids) for rollout in rollouts]
    counts = torch.tensor(lengths, dtype=torch.float32)
    ended = counts[torch.tensor(stopped)]
    for prefix, values in (("", counts), ("terminated_", ended)):
        if len(values):
            metrics.add(f"completions/mean_{prefix}length", values.mean(), weight=len(values))
            metrics.add(f"completions/min_{prefix}length", values.min())
            metrics.add(f"completions/max_{prefix}length", values.max())
    cut = 1.0 - torch.tensor(stopped, dtype=torch.float64)
    for suffix, own in metrics.scopes([rollout.canvas.task for rollout in rollouts]):
        metrics.add(f"completions/clipped_ratio{suffix}", cut[own].mean(), weight=int(own.sum()))
