"""From the answers of a task to its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ...errors import import_named
from ...training.evaluation import Accuracy
from .readings import yes_no
from .statistics import METHOD, interval, majority, pass_at_k, powers
from .task import EvalTask


Answers = list[dict[str, Any]]
"""Lines of ``answers.jsonl``."""


def by_prompt(answers: Answers) -> dict[int, Answers]:
    """The judged answers of each row, in order of rows and samples."""
    found: dict[int, Answers] = {}
    for own in sorted(answers, key=lambda own: (own["row"], own["sample"])):
        if own["score"] is not None:
            found.setdefault(own["row"], []).append(own)
    return found


def summary(task: EvalTask, answers: Answers, diverse: Sequence[float] = ()) -> dict[str, Any]:
    """What ``results.json`` says of a task: the mean over prompts of the mean over a prompt's answers, and what goes with it.

    ``count`` counts the prompts that are judged, ``answers`` all answers. The interval, and those of ``pass@k`` and ``majority@k``, are
    over prompts. ``diverse`` has the ``diversity`` of each prompt's pictures.
    """
    prompts = by_prompt(answers)
    found: dict[str, Any] = {"metric": task.metric if prompts else None, "answers": len(answers)}
    found["unjudged"] = sum(own["score"] is None for own in answers)
    found |= {"mean": None, "low": None, "high": None, "count": 0}
    if diverse:
        found["diversity"] = asdict(interval(diverse, binary=False))
    if not prompts:
        return found
    clusters = [own[0].get("cluster", row) for row, own in prompts.items()]

    def over_prompts(value: Callable[[Answers], float]) -> Accuracy:
        return interval([value(own) for own in prompts.values()], clusters, task.binary)

    found |= {**asdict(over_prompts(mean_score)), "interval": METHOD}
    least = min(len(own) for own in prompts.values())
    if task.binary and least > 1:
        found["pass@k"] = {str(k): asdict(over_prompts(_pass_at(k))) for k in powers(least)}
    if task.vote and least > 1:
        vote = import_named(task.vote)
        found["majority@k"] = {
            str(k): asdict(over_prompts(_majority_at(k, vote))) for k in powers(least) if k > 2 or k == least
        }
    if any("category" in own[0] for own in prompts.values()):
        found["categories"] = _categories(prompts)
    if task.summary:
        found["scores"] = import_named(task.summary)([own for rows in prompts.values() for own in rows])
    return found


def mean_score(answers: Answers) -> float:
    """The mean score of a prompt's answers."""
    return sum(own["score"] for own in answers) / len(answers)


def _pass_at(k: int) -> Callable[[Answers], float]:
    return lambda own: pass_at_k(sum(one["score"] == 1.0 for one in own), len(own), k)


def _majority_at(k: int, vote: Callable) -> Callable[[Answers], float]:
    return lambda own: majority([one["score"] for one in own[:k]], [one["completion"] for one in own[:k]], vote)


def _categories(prompts: dict[int, Answers]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[float]] = {}
    for own in prompts.values():
        groups.setdefault(str(own[0]["category"]), []).append(mean_score(own))
    return {name: {"mean": sum(own) / len(own), "count": len(own)} for name, own in sorted(groups.items())}


def yes_no_scores(answers: Answers) -> dict[str, float]:
    """Precision, recall and F1 of "yes", and the share of "yes", as POPE reports them; what is neither counts as "no"."""
    said = [yes_no(own["completion"]) == "yes" for own in answers]
    gold = [str(own["gold"]).strip().lower() == "yes" for own in answers]
    both = sum(one and other for one, other in zip(said, gold, strict=True))
    precision, recall = both / max(sum(said), 1), both / max(sum(gold), 1)
    f1 = 2 * precision * recall / (precision + recall) if both else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "yes_share": sum(said) / len(said)}


COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
"""Categories of MME that are not of perception."""


def mme_scores(answers: Answers) -> dict[str, float]:
    """MME's scores: of each category the accuracy in percent plus that over pictures with both questions right, and their sums.

    ``perception`` is at most 2000 over its ten categories, ``cognition`` 800 over its four. A picture of which one question is missing
    (``--limit``) does not count. Of several samples the score is the mean.
    """
    pairs: dict[tuple[str, Any, int], list[float]] = {}
    for own in answers:
        pairs.setdefault((own["category"], own["cluster"], own["sample"]), []).append(own["score"])
    scores: dict[str, list[float]] = {}
    for (category, _, _), own in pairs.items():
        if len(own) == 2:
            scores.setdefault(category, []).append(50 * sum(own) + 100 * (sum(own) == 2))
    means = {name: sum(own) / len(own) for name, own in sorted(scores.items())}
    perception = sum(own for name, own in means.items() if name not in COGNITION)
    return {"perception": perception, "cognition": sum(means.get(name, 0.0) for name in COGNITION), **means}
