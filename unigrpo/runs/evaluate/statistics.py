"""Means with intervals over prompts, pass@k and the majority of several answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from math import comb, sqrt

import numpy as np

from ...training.evaluation import Accuracy


DRAWS, SEED = 2000, 0
CHUNK = 2**22
"""Picks of prompts that are held at a time, 32 MB."""

METHOD = (
    f"95 % percentile bootstrap over prompts, {DRAWS} draws; over the groups of prompts where a task has them (cluster); Wilson's where all "
    "prompts are right or none is"
)


def interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None, binary: bool = True) -> Accuracy:
    """The mean of a value a prompt, with its 95 % interval over prompts.

    Prompts of one cluster are drawn together. A bootstrap of equal values has no width: where all are 1, or all 0, of a ``binary``
    measure, the interval is Wilson's, over the clusters.

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise ValueError("no prompts to average over")
    mean = float(np.mean(values, dtype=np.float64))
    if binary and mean in (0.0, 1.0):
        low, high = _wilson(mean, len(values) if clusters is None else len(set(clusters)))
    else:
        low, high = np.percentile(resampled(values, clusters), [2.5, 97.5])
    return Accuracy(mean=mean, low=float(low), high=float(high), count=len(values))


def resampled(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> np.ndarray:
    """``[DRAWS]`` means of as many clusters of values, drawn with replacement."""
    names = list(range(len(values))) if clusters is None else list(clusters)
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    index = np.array([places[name] for name in names])
    sums, counts = np.bincount(index, weights=np.asarray(values, dtype=np.float64)), np.bincount(index)
    rng, parts = np.random.default_rng(SEED), []
    size = max(1, CHUNK // len(sums))
    for start in range(0, DRAWS, size):
        picks = rng.integers(0, len(sums), size=(min(size, DRAWS - start), len(sums)))
        parts.append(sums[picks].sum(axis=1) / counts[picks].sum(axis=1))
    return np.concatenate(parts)


def _wilson(mean: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a share (JASA 22, 1927)."""
    middle = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def pass_at_k(right: int, count: int, k: int) -> float:
    """The chance that one of ``k`` of ``count`` answers, of which ``right`` are right, is right: 1 - C(n - c, k) / C(n, k).

    Unbiased for the policy's own chance (arXiv 2107.03374, equation 1).

    Raises:
        ValueError: not 1 <= k <= count.
    """
    if not 1 <= k <= count:
        raise ValueError(f"pass@{k} of {count} answers: k must be from 1 to {count}")
    return 1.0 - comb(count - right, k) / comb(count, k)


def majority(scores: Sequence[float], completions: Sequence[str], vote: Callable[[str], str | None]) -> float:
    """The score of the answer that most completions give, the first to come of equally many; 0.0 where none gives one."""
    votes = [vote(own) for own in completions]
    counted = Counter(own for own in votes if own is not None)
    if not counted:
        return 0.0
    winner = max(counted, key=counted.__getitem__)
    return scores[votes.index(winner)]


def powers(count: int) -> list[int]:
    """1, 2, 4 ... below ``count``, and ``count``."""
    return sorted({2**power for power in range(count.bit_length()) if 2**power <= count} | {count})
