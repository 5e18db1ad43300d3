"""Is the answer of a completion mathematically the same as the solution?"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from ._answers import gold_answer, predicted_answer
from ._math_process import WORKER, Verdict
from ._numbers import Number, read_number, same_number
from .text import completion_text


_SCORES = {
    Verdict.EQUAL: 1.0,
    Verdict.DIFFERENT: 0.0,
    Verdict.EXHAUSTED: 0.0,
    Verdict.GOLD_UNREADABLE: None,
    Verdict.GOLD_EXHAUSTED: None,
}

_read = lru_cache(maxsize=4096)(read_number)


def math_correctness(
    prompts: list,
    completions: list,
    solution: list | None = None,
    *,
    timeout: float = 5.0,
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """1.0 where a completion's answer equals its solution, 0.0 where it does not; range {0.0, 1.0}.

    Plain numbers are compared here, exactly; everything else by math-verify in another process, at most ``timeout``
    seconds a distinct pair. A pair that runs out of time or memory scores 0.0. None where a completion is not text or
    its solution is None or cannot be parsed. ``rewards/_answers.py`` says where an answer is looked for.

    Args:
        solution: dataset column: a number, ``"... #### 72"``, LaTeX, or None; one a completion.
        timeout: seconds, above 0.
        log_metric: receives ``math_correctness/timeouts`` (pairs) and ``math_correctness/unparsable_gold`` (rows).

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
    comparison = _Comparison(timeout)
    scores = [comparison.score(text, gold) for text, gold in zip(texts, solution, strict=True)]
    if log_metric is not None:
        log_metric("math_correctness/timeouts", float(comparison.timeouts))
        log_metric("math_correctness/unparsable_gold", float(comparison.unparsable_gold))
    return scores


class _Comparison:
    """The comparisons of one call: each distinct pair is made once, and a gold that fails is not tried again."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.timeouts = 0
        self.unparsable_gold = 0
        self._verdicts: dict[tuple[str, str], Verdict] = {}
        self._bad_golds: dict[str, Verdict] = {}

    def score(self, text: str | None, solution: Any) -> float | None:
        if text is None:
            return None
        gold = gold_answer(solution)
        verdict = Verdict.GOLD_UNREADABLE if gold is None else self._compare(gold, predicted_answer(text) or "")
        score = _SCORES[verdict]
        self.unparsable_gold += score is None
        return score

    def _compare(self, gold: str, prediction: str) -> Verdict:
        numbers = _read(gold), _read(prediction)
        if isinstance(numbers[0], Number) and (isinstance(numbers[1], Number) or not prediction):
            equal = bool(prediction) and same_number(*numbers)
            return Verdict.EQUAL if equal else Verdict.DIFFERENT
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
