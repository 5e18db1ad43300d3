"""Answers that must be the solution itself: letter for letter, or the letter of an option."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from numbers import Number
from typing import Any

from ._after_thought import after_thought, tagged_or_all
from ._arguments import check, column, is_whole, wrong_value
from .text import completion_text


_BOXED = re.compile(r"\\boxed\s?\{(?:\\text(?:bf)?\s?\{)?([^{}]*)\}")
_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:]?")
_LED = re.compile(r"[(\[]([A-Z])[)\]]|([A-Z])[).:](?=\s)")
_NAMED = re.compile(r"\b(?i:answer|option|choice)(?i:\s+is)?\s{0,3}:?\s{0,3}\*{0,2}[(\[]?([A-Z])\b(?!['’])")
_ALTERNATIVE = re.compile(
    r"[)\].*]{0,3}\s?[,;(]?\s?(?:(?:or|and)\b|[/&]|[,;-](?=\W{0,3}[A-Z]\W*(?:$|[,;/]|or\b|and\b)))\W{0,3}[A-Z]\b(?!['’])"
)
_LETTERS = re.compile(r"(?:\W{0,5}[A-Z]\b){1,26}\W{0,5}")


class ExactMatch:
    """1.0 where a completion's answer is the solution, letter for letter, 0.0 where it is not; range {0.0, 1.0}.

    The answer stands behind the last ``</think>``; it is the content of the last ``<answer></answer>``, else all that is
    said. Unicode is brought to its composed form, and white space counts as one space between words and as none around
    them. None where a completion is not text or its solution is None or empty. Time is linear in its length.

    Args:
        ignore_case: whether capitals are small letters.
        ignore_punctuation: whether signs of punctuation are left out, in the solution too.

    Raises:
        ValueError: an argument is not a truth value.
    """

    __name__ = "exact_match"

    def __init__(self, *, ignore_case: bool = False, ignore_punctuation: bool = False) -> None:
        for name, value in (("ignore_case", ignore_case), ("ignore_punctuation", ignore_punctuation)):
            check(isinstance(value, bool), self.__name__, name, value, "true or false")
        self.ignore_case, self.ignore_punctuation = ignore_case, ignore_punctuation

    def __call__(self, prompts: list, completions: list, solution: list | None = None, **_: Any) -> list[float | None]:
        """One score a row.

        Args:
            solution: dataset column: a text, a number, or a list of them, any of which is right.

        Raises:
            ValueError: text completions without this column, or a value that is none of these.
        """
        texts = [completion_text(completion) for completion in completions]
        golds = column(self.__name__, "solution", solution, texts)
        return [
            None if text is None or gold is None else self._score(text, gold)
            for text, gold in zip(texts, golds, strict=True)
        ]

    def _score(self, text: str, solution: Any) -> float | None:
        golds = solution if isinstance(solution, list | tuple) else [solution]
        if not all(isinstance(gold, str | Number) for gold in golds):
            raise wrong_value(self.__name__, "solution", solution, "a text, a number, or a list of them")
        wanted = {self._normalised(str(gold)) for gold in golds} - {""}
        said = after_thought(text)
        if not wanted:
            return None
        return float(said is not None and self._normalised(tagged_or_all(said)) in wanted)

    def _normalised(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text)
        text = text.casefold() if self.ignore_case else text
        if self.ignore_punctuation:
            text = "".join(letter for letter in text if not unicodedata.category(letter).startswith("P"))
        return " ".join(text.split())


def multiple_choice(
    prompts: list, completions: list, solution: list | None = None, choices: list | None = None, **_: Any
) -> list[float | None]:
    """1.0 where a completion chooses the right option, 0.0 where it does not; range {0.0, 1.0}.

    The answer stands behind the last ``</think>``; it is the last ``\\boxed{}``, else the last ``<answer></answer>``, else
    all that is said. It chooses an option where it is its letter, ``B``, ``(B)`` or ``b.``; where it is the text of one of
    ``choices``; where it begins with the letter, ``B. Paris``; where its last line is the letter; or by what it says last,
    ``the answer is B``. ``A or B`` chooses none, and so does a letter beyond the ``choices``. None where a completion is not
    text or its solution is None. Time is linear in its length.

    Args:
        solution: dataset column: a letter; the place among the options, from 0; or the text of one of ``choices``.
        choices: dataset column that may be absent: the texts of the options in order, a list of 26 at most.

    Raises:
        ValueError: text completions without a ``solution`` column, or a value that is none of these.
    """
    texts = [completion_text(completion) for completion in completions]
    golds = column("multiple_choice", "solution", solution, texts)
    options = [None] * len(texts) if choices is None else choices
    return [
        None if text is None or gold is None else _chosen_right(text, gold, own)
        for text, gold, own in zip(texts, golds, options, strict=True)
    ]


def _chosen_right(text: str, solution: Any, choices: Any) -> float:
    options = _options(choices)
    gold, said = _right_letter(solution, options), after_thought(text)
    chosen = None if said is None else _chosen(said, options)
    return float(chosen == gold)


def _options(choices: Any) -> dict[str, str]:
    """Letter of each option -> its text without what does not count; empty where they are not known."""
    texts = [] if choices is None else list(choices) if isinstance(choices, Iterable) else [None]
    if len(texts) > 26 or isinstance(choices, str) or not all(isinstance(text, str) for text in texts):
        raise wrong_value("multiple_choice", "choices", choices, "a list of at most 26 texts")
    return {chr(ord("A") + place): _plain(text) for place, text in enumerate(texts)}


def _right_letter(solution: Any, options: dict[str, str]) -> str:
    """The letter of the right option."""
    letter = None
    if is_whole(solution, 0) and solution < (len(options) or 26):
        letter = chr(ord("A") + solution)
    elif isinstance(solution, str):
        match = _LETTER.fullmatch(solution.strip())
        letter = match[1].upper() if match else _by_text(solution, options)
    if letter is None or (options and letter not in options):
        cure = "the letter of an option, its place from 0, or the text of one of `choices`"
        raise wrong_value("multiple_choice", "solution", solution, cure)
    return letter


def _chosen(said: str, options: dict[str, str]) -> str | None:
    boxed = _BOXED.findall(said)
    answer = (boxed[-1] if boxed else tagged_or_all(said)).strip(" \t\n*_$`")
    if (match := _LETTER.fullmatch(answer)) is not None:
        letter = match[1].upper()
    elif (by_text := _by_text(answer, options)) is not None:
        letter = by_text
    else:
        last = answer.rpartition("\n")[2].strip(" \t*_$`")
        matches = [match for match in (_LED.match(answer), _LETTER.fullmatch(last)) if match]
        match = matches[0] if matches else next(iter([*_NAMED.finditer(answer)][-1:]), None)
        if match is None or (
            match.string is answer
            and (_ALTERNATIVE.match(answer, match.end()) or _LETTERS.fullmatch(answer, match.end()))
        ):
            return None
        letter = next(group for group in match.groups() if group).upper()
    return letter if not options or letter in options else None


def _by_text(answer: str, options: dict[str, str]) -> str | None:
    """The letter of the one option with this text."""
    letters = [letter for letter, text in options.items() if text and text == _plain(answer)]
    return letters[0] if len(letters) == 1 else None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .,;:!?\"'")
