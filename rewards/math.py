"""Is the answer of a completion mathematically the same as the solution?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ._answers import gold_answer, predicted_answer
from ._compare import Gold, Left, compare, read_gold
from ._math_process import WORKER, Verdict
from .text import completion_text


_SCORES = {
    Verdict.EQUAL: 1.0,
    Verdict.DIFFERENT: 0.0,
    Verdict.EXHAUSTED: 0.0,
    Verdict.GOLD_UNREADABLE: None,
    Verdict.GOLD_EXHAUSTED: None,
    Left.OPEN: 0.0,
}


def math_correctness(
    prompts: list,
    completions: list,
    solution: list | None = None,
    *,
    timeout: float = 5.0,
    evaluated: bool = True,
    opened: bool = False,
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """1.0 where a completion's answer equals its solution, 0.0 where it does not; range {0.0, 1.0}.

    Numbers, words, letters, ratios and lists of them are compared here; everything else by math-verify in another process,
    at most ``timeout`` seconds a distinct pair. A pair that runs out of time or memory scores 0.0. None where a completion is
    not text or its solution is None or cannot be read. ``_answers.py`` says where an answer is looked for, ``_compare.py``
    what equals what; the README has both as tables.

    Args:
        solution: dataset column: a number, ``"... #### 72"``, LaTeX, a short name, a list of one of these, or None.
        timeout: seconds, above 0.
        evaluated: ``48 + 24`` is no answer where the solution is a plain number; False takes it.
        opened: the prompt opens the thought, so that a completion without ``</think>`` is all thought.
        log_metric: receives ``math_correctness/timeouts`` (pairs), ``math_correctness/not_evaluated`` and
            ``math_correctness/unparsable_gold`` (rows).

    Raises:
        ValueError: text completions without a ``solution`` column, a column of another length, or a bad timeout.
        RuntimeError: math-verify does not run in this environment.
    """
    if not (timeout > 0 and math.isfinite(timeout)):
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}")
    texts = [completion_text(completion) for completion in completions]
    if solution is None:
        if any(text is not None for text in texts):
            raise ValueError("math_correctness needs a `solution` column in the dataset, and there is none")
        solution = [None] * len(texts)
    comparison = _Comparison(timeout, evaluated, opened)
    scores = [comparison.score(text, gold) for text, gold in zip(texts, solution, strict=True)]
    if log_metric is not None:
        log_metric("math_correctness/timeouts", float(comparison.timeouts))
        log_metric("math_correctness/not_evaluated", float(comparison.not_evaluated))
        log_metric("math_correctness/unparsable_gold", float(comparison.unparsable_gold))
    return scores


class _Comparison:
    """The comparisons of one call: each distinct pair is made once, and a gold that fails is not tried again."""

    def __init__(self, timeout: float, evaluated: bool, opened: bool) -> None:
        self.timeout, self.evaluated, self.opened = timeout, evaluated, opened
        self.timeouts = self.not_evaluated = self.unparsable_gold = 0
        self._verdicts: dict[tuple[str, str], Verdict] = {}
        self._bad_golds: dict[str, Verdict] = {}

    def score(self, text: str | None, solution: Any) -> float | None:
        if text is None:
            return None
        written = gold_answer(solution)
        verdict = Verdict.GOLD_UNREADABLE if written is None else self._verdict(read_gold(written), text)
        self.not_evaluated += verdict is Left.OPEN
        self.unparsable_gold += _SCORES[verdict] is None
        return _SCORES[verdict]

    def _verdict(self, gold: Gold, text: str) -> Verdict | Left:
        answer = predicted_answer(text, self.opened, gold.several)
        return compare(gold, answer or "", self._compared, self.evaluated)

    def _compared(self, gold: str, prediction: str) -> Verdict:
        if gold in self._bad_golds:
            return self._bad_golds[gold]
        if (gold, prediction) not in self._verdicts:
            self._verdicts[gold, prediction] = self._ask(gold, prediction)
        return self._verdicts[gold, prediction]

    def _ask(self, gold: str, prediction: str) -> Verdict:
        verdict = WORKER.compare(gold, prediction, self.timeout)
        self.timeouts += verdict in (Verdict.EXHAUSTED, Verdict.GOLD_EXHAUSTED)
        if verdict in (Verdict.GOLD_UNREADABLE, Verdict.GOLD_EXHAUSTED):
            self._bad_golds[gold] = verdict
        return verdict
