"""How long is a completion, and how much of it is said again?"""

from __future__ import annotations

from typing import Any

import regex

from ._arguments import check, is_whole
from .text import completion_text


_WORDS = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]|\w+|[^\w\s]")
"""Words, signs of punctuation, and the characters of writing without spaces."""


class Length:
    """Soft punishment of completions that are too long, DAPO's equation 13 (arXiv 2503.14476); range [-1, 0].

    Of ``max_completion_length`` tokens the last ``soft_punish_cache`` are punished: up to them a completion scores 0, from
    there the score falls in a line to -1 at ``max_completion_length``, and beyond that it is -1. All tokens of the completion
    count, its thoughts too. None where a completion is not text.

    Args:
        max_completion_length: tokens, at least 1; the run's own, where that is what cuts answers.
        soft_punish_cache: tokens from 1 to ``max_completion_length``; None is a fifth, as in the paper.

    Raises:
        TypeError: without ``max_completion_length``.
        ValueError: an argument is none of these.
    """

    __name__ = "length"

    def __init__(self, max_completion_length: int, soft_punish_cache: int | None = None) -> None:
        right = is_whole(max_completion_length, 1)
        check(right, self.__name__, "max_completion_length", max_completion_length, "a whole number of at least 1")
        cache = max(1, max_completion_length // 5) if soft_punish_cache is None else soft_punish_cache
        right = is_whole(cache, 1) and cache <= max_completion_length
        must_be = f"a whole number from 1 to max_completion_length={max_completion_length}, or None"
        check(right, self.__name__, "soft_punish_cache", soft_punish_cache, must_be)
        self.max_completion_length, self.soft_punish_cache = max_completion_length, cache

    def __call__(
        self, prompts: list, completions: list, completion_ids: list | None = None, **_: Any
    ) -> list[float | None]:
        """One score a row.

        Args:
            completion_ids: the tokens of each completion.

        Raises:
            ValueError: a text without its tokens.
        """
        texts = [completion_text(completion) for completion in completions]
        ids = [[]] * len(texts) if completion_ids is None else completion_ids
        return [None if text is None else self._score(text, own) for text, own in zip(texts, ids, strict=True)]

    def _score(self, text: str, ids: Any) -> float:
        count = 0 if ids is None else len(ids)
        if text and not count:
            raise ValueError("length counts tokens, and a completion has none: give a column `completion_ids`")
        free = self.max_completion_length - self.soft_punish_cache
        return -min(max(count - free, 0) / self.soft_punish_cache, 1.0)


class Repetition:
    """Minus the share of a completion's runs of words that it has said before; range [-1, 0].

    Every run of ``ngram_size`` words in a row is one; the score is minus (1 - different runs / runs), and 0 where there are
    fewer words than that. Capitals do not count, a sign of punctuation is a word, and so is each character of writing
    without spaces. All of the completion counts, its thoughts too. None where a completion is not text. Time is linear in
    its length.

    Args:
        ngram_size: words of a run, from 1 to 100.

    Raises:
        ValueError: it is none of these.
    """

    __name__ = "repetition"

    def __init__(self, ngram_size: int = 4) -> None:
        right = is_whole(ngram_size, 1) and ngram_size <= 100
        check(right, self.__name__, "ngram_size", ngram_size, "a whole number from 1 to 100")
        self.ngram_size = ngram_size

    def __call__(self, prompts: list, completions: list, **_: Any) -> list[float | None]:
        """One score a row."""
        texts = [completion_text(completion) for completion in completions]
        return [None if text is None else self._score(text) for text in texts]

    def _score(self, text: str) -> float:
        words = _WORDS.findall(text.casefold())
        runs = list(zip(*(words[start:] for start in range(self.ngram_size)), strict=False))
        return len(set(runs)) / len(runs) - 1 if runs else 0.0
