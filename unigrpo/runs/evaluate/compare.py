"""``unigrpo compare A B``: is B better than A, on the same rows, from the same random numbers?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from ...training.checkpoints.files import named, write_json
from .folder import RESULTS, difference, read_answers, read_results
from .show_compare import show
from .statistics import DRAWS, interval, resampled
from .summaries import Answers, by_prompt, mean_score


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A finished evaluation's folder."""

    folder: Path
    results: dict[str, Any]
    answers: list[dict[str, Any]]

    def prompts(self, task: str) -> dict[int, Answers]:
        """The judged answers to each row of a task."""
        return by_prompt([own for own in self.answers if own["task"] == task])


def open_evaluation(path: str) -> Evaluation:
    """What lies in the folder ``path``, or whose ``results.json`` that is.

    Raises:
        ValueError: no evaluation, or one that is not finished.
    """
    folder = Path(path).parent if Path(path).name == RESULTS else Path(path)
    results = read_results(folder)
    if results is None:
        raise ValueError(
            f"{path!r} holds no {RESULTS}: give the folder of an evaluation, such as runs/evaluations/NAME"
        )
    if not results.get("finished"):
        raise ValueError(f"{path!r} is not finished: call its `unigrpo evaluate` again, which goes on")
    return Evaluation(folder=folder, results=results, answers=read_answers(folder))


def compare(a: str, b: str, *, anyway: bool = False, output: str | None = None) -> dict[str, Any]:
    """Compares two evaluations prompt by prompt, and prints the difference, its interval, and what changed.

    Args:
        anyway: also where more than the model differs; then tasks and prompts that both have are compared.
        output: file to write, as JSON; it must not exist.

    Returns:
        what ``output`` gets: of each task both means, the ``difference`` B - A with its interval, ``p_value`` and ``test``, and the rows
        that got ``better`` and ``worse``.

    Raises:
        ValueError: no finished evaluation, more than the model differs, nothing in common, or ``output`` exists.
    """
    if output is not None and Path(output).exists():
        raise ValueError(f"--output {output!r} exists already: name another file, or remove it")
    one, other = open_evaluation(a), open_evaluation(b)
    differing = difference(one.results, other.results, skip=("model",))
    if differing is not None and not anyway:
        raise ValueError(
            f"{a} and {b} differ in more than the model: {differing}. Measure both alike, or compare what they share with --anyway"
        )
    tasks = {name: compared(one, other, name) for name in one.results["tasks"] if name in other.results["tasks"]}
    tasks = {name: own for name, own in tasks.items() if own is not None}
    if not tasks:
        raise ValueError(f"{a} and {b} have no judged prompt in common: evaluate both on the same rows")
    found = {
        "a": {"folder": str(one.folder), "model": one.results["model"]},
        "b": {"folder": str(other.folder), "model": other.results["model"]},
        "differing": differing,
        "tasks": tasks,
    }
    show(found)
    if output is not None:
        with named(Path(output)):
            write_json(Path(output), found)
    return found


def compared(one: Evaluation, other: Evaluation, task: str) -> dict[str, Any] | None:
    """The entry of a task; None where no prompt is judged in both."""
    before, after = one.prompts(task), other.prompts(task)
    rows = [row for row in before if row in after and before[row][0]["prompt"] == after[row][0]["prompt"]]
    if not rows:
        return None
    first, second = ([mean_score(own[row]) for row in rows] for own in (before, after))
    gains = [late - early for early, late in zip(first, second, strict=True)]
    clusters = [before[row][0].get("cluster", row) for row in rows]
    found = interval(gains, clusters, binary=False)
    single = all(len(own[row]) == 1 for own in (before, after) for row in rows) and len(set(clusters)) == len(rows)
    name, p_value = sign_test(gains) if single else bootstrap_test(gains, clusters)
    changed = {"better": [], "worse": []}
    for row, gain in sorted(zip(rows, gains, strict=True), key=lambda pair: -abs(pair[1])):
        if gain:
            changed["better" if gain > 0 else "worse"].append(_changed(before[row], after[row], gain))
    return {
        "metric": one.results["tasks"][task]["metric"],
        "a": float(np.mean(first)),
        "b": float(np.mean(second)),
        "difference": {"mean": found.mean, "low": found.low, "high": found.high},
        "prompts": len(rows),
        "p_value": p_value,
        "test": name,
        **changed,
    }


def _changed(before: Answers, after: Answers, gain: float) -> dict[str, Any]:
    """A prompt whose score changed, with the first pair of answers of which one scores better."""
    pairs = list(zip(before, after, strict=False))
    early, late = next((pair for pair in pairs if (pair[1]["score"] - pair[0]["score"]) * gain > 0), pairs[0])
    own = {"row": early["row"], "prompt": early["prompt"], "gold": early["gold"], "gain": gain}
    return {**own, "a": early["completion"], "b": late["completion"]}


def sign_test(gains: Sequence[float]) -> tuple[str, float]:
    """The exact two-sided sign test over prompts that changed; of right and wrong answers it is McNemar's (Psychometrika 12, 1947)."""
    better, worse = sum(own > 0 for own in gains), sum(own < 0 for own in gains)
    count = better + worse
    tail = sum(comb(count, place) for place in range(min(better, worse) + 1))
    return "exact sign test over prompts (McNemar)", min(1.0, 2 * tail / 2**count)


def bootstrap_test(gains: Sequence[float], clusters: Sequence[Any]) -> tuple[str, float]:
    """Twice the smaller share of resampled means that lie on one side of 0, those at 0 on both."""
    means = resampled(gains, clusters)
    share = min(float(np.mean(means <= 0)), float(np.mean(means >= 0)))
    return f"paired bootstrap over prompts, {DRAWS} draws", min(1.0, max(2 * share, 1 / DRAWS))
