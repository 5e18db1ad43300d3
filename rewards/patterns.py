"""Does an answer match a pattern?"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import regex

from ._after_thought import after_thought
from ._arguments import check, column, is_positive
from .text import completion_text


MAX_PATTERN = 1_000
"""Characters of a regular expression."""

MAX_REPEATS = 100_000
"""Product of the numbers in a pattern's braces: ``(a{99}){99}`` is written out while it is compiled, which nothing bounds."""

_BRACES = re.compile(r"\{([^{}]*)\}")


class RegexReward:
    """1.0 where a regular expression is found in a completion's answer, 0.0 where it is not; range {0.0, 1.0}.

    The answer is what stands behind the last ``</think>``, without white space around it. The search of one answer is
    ended after ``timeout`` seconds, and such an answer scores 0.0. None where a completion is not text or its pattern is
    None.

    Args:
        pattern: for all rows, at most 1000 characters, as the package ``regex`` reads it, which is Python's ``re`` and more;
            flags stand in it, ``(?i)``. None reads the column ``pattern``.
        fullmatch: whether the pattern must match all of the answer.
        timeout: seconds for one answer, above 0.

    Raises:
        ValueError: an argument is none of these.
    """

    __name__ = "regex"

    def __init__(self, pattern: str | None = None, *, fullmatch: bool = False, timeout: float = 1.0) -> None:
        check(isinstance(fullmatch, bool), self.__name__, "fullmatch", fullmatch, "true or false")
        check(is_positive(timeout), self.__name__, "timeout", timeout, "a number of seconds above 0")
        self.pattern, self.fullmatch, self.timeout = pattern, fullmatch, timeout
        if pattern is not None:
            compiled(self.__name__, pattern)

    def __call__(
        self,
        prompts: list,
        completions: list,
        pattern: list | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """One score a row. ``log_metric`` receives ``regex/timeouts``, the answers whose search was ended.

        Raises:
            ValueError: no pattern was given and there is no such column, or a row's is no regular expression.
        """
        texts = [completion_text(completion) for completion in completions]
        given = [self.pattern] * len(texts) if self.pattern is not None else pattern
        patterns = column(self.__name__, "pattern", given, texts)
        timeouts, scores = 0, []
        for text, own in zip(texts, patterns, strict=True):
            score = None
            if text is not None and own is not None:
                found = self._found(compiled(self.__name__, own), after_thought(text))
                timeouts += found is None
                score = float(bool(found))
            scores.append(score)
        if log_metric is not None:
            log_metric(f"{self.__name__}/timeouts", float(timeouts))
        return scores

    def _found(self, pattern: regex.Pattern, answer: str | None) -> bool | None:
        """Whether the pattern is in the answer; None where the search was ended."""
        if answer is None:
            return False
        return found_within(pattern.fullmatch if self.fullmatch else pattern.search, answer, self.timeout)


def found_within(search: Callable[..., Any], text: str, seconds: float) -> bool | None:
    """Whether a compiled pattern's ``search`` or ``fullmatch`` finds something; None where it takes longer."""
    try:
        return search(text, timeout=seconds, concurrent=True) is not None
    except (TimeoutError, MemoryError):
        return None


@lru_cache(maxsize=1024)
def compiled(reward: str, pattern: Any) -> regex.Pattern:
    """A regular expression of somebody else's.

    Raises:
        ValueError: it is none, or longer than ``MAX_PATTERN``.
    """
    must_be = f"a regular expression of at most {MAX_PATTERN} characters, its repeats {{n}} multiplied at most {MAX_REPEATS:,}"
    right = isinstance(pattern, str) and len(pattern) <= MAX_PATTERN and _repeats(pattern) <= MAX_REPEATS
    check(right, reward, "pattern", pattern, must_be)
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{reward}: pattern {pattern[:80]!r} is no regular expression ({error})") from None


def _repeats(pattern: str) -> int:
    numbers = [re.findall("[0-9]+", inside) for inside in _BRACES.findall(pattern)]
    return math.prod(max(1, *map(int, found)) for found in numbers if found)
