"""Is the short answer of a completion the right one? Numbers, option letters, yes or no, words."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from numbers import Real
from typing import Any

from ._answers import gold_answer, marked_answer, predicted_answer, spoken, usable
from ._compare import Gold, compare, read_gold
from ._math_process import Verdict
from ._notation import normalised
from ._numbers import read_number
from ._said import said_answer
from ._words import YES_NO, count_word, option_letter, words, yes_or_no
from .text import completion_text


MAX_ANSWER = 200
"""Characters of an answer that is compared as text; a longer one is no short answer."""

_SHORT_UNIT = re.compile(r"(?<=[0-9])\s?[mghs](?:\^?[23]|[²³])?$")
_IS = re.compile(r"\W{0,3}(?:the|it|this|that)(?:\b.{0,60}?\b(?:is|are|was|were)|['’]s)\b", re.IGNORECASE)


def answer_correctness(
    prompts: list,
    completions: list,
    solution: list | None = None,
    *,
    opened: bool = False,
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """1.0 where a completion's short answer is the solution, 0.0 where it is not; range {0.0, 1.0}.

    ``_answers.py`` says where an answer is looked for. The solution decides how it is compared:

    * a number, with a unit or without, or what can be worked out of numbers, roots and pi: as in ``math_correctness``, and
      ``ten`` is 10
    * a letter: as the letter of an option, ``B``, ``(B)``, ``B. 145°``, ``the answer is B``; two options are none
    * yes or no, true or false: with the first word of the answer; both are none
    * anything else: letter for letter, without case, articles and the punctuation around it; of "it is metal" the end counts

    Formulas with letters are compared letter for letter too: ``math_correctness`` knows more about those. None where a
    completion is not text or its solution is None or empty. Time is linear in the length of a completion.

    Args:
        solution: dataset column: a number, a bool, a text, or a text with ``<answer>145°</answer>`` in it.
        opened: the prompt opens the thought, so that a completion without ``</think>`` is all thought.
        log_metric: receives ``answer_correctness/unparsable_gold``, the rows without a usable solution.

    Raises:
        ValueError: text completions without a ``solution`` column, or a column of another length.
    """
    texts = [completion_text(completion) for completion in completions]
    if solution is None:
        if any(text is not None for text in texts):
            raise ValueError("answer_correctness needs a `solution` column in the dataset, and there is none")
        solution = [None] * len(texts)
    scores: list[float | None] = []
    unparsable = 0
    for text, given in zip(texts, solution, strict=True):
        gold = None if text is None else _gold(given)
        unparsable += text is not None and gold is None
        scores.append(None if gold is None else float(_is_correct(gold, text, opened)))
    if log_metric is not None:
        log_metric("answer_correctness/unparsable_gold", float(unparsable))
    return scores


def _gold(solution: Any) -> str | None:
    """The answer in a solution column; None where there is none, or none that is short."""
    if isinstance(solution, list | tuple) and len(solution) == 1:
        return _gold(solution[0])
    if isinstance(solution, bool):
        return "yes" if solution else "no"
    if isinstance(solution, Real):
        return gold_answer(solution)
    if not isinstance(solution, str):
        return None
    said = spoken(solution)
    _, marker, line = said.rpartition("####")
    text = line.strip().partition("\n")[0] if marker else said
    marked, _ = marked_answer(text)
    answer = usable(text if marked is None else marked)
    return answer if answer is not None and len(answer) <= MAX_ANSWER and words(answer) else None


def _is_correct(gold: str, text: str, opened: bool) -> bool:
    read = _read_gold(gold)
    said = spoken(text, opened)
    if read.kind in ("number", "list", "ratio"):
        return _is_number(read, predicted_answer(text, opened, read.several) or "", said)
    marked, _ = marked_answer(said)
    answer = usable(said if marked is None else marked) or ""
    if read.kind == "letter":
        return option_letter(normalised(answer)) == read.value.upper()
    if words(gold) in YES_NO:
        return yes_or_no(_final(answer, marked is None)) == YES_NO[words(gold)]
    return _same_words(gold, answer, marked is None)


@lru_cache(maxsize=4096)
def _read_gold(gold: str) -> Gold:
    """The gold, also a number with a unit of a single letter, which is a variable in a formula: ``5m``."""
    return read_gold(_without_letter(gold))


def _without_letter(text: str) -> str:
    shorter = _SHORT_UNIT.sub("", text)
    return text if read_number(text) or read_number(shorter) is None else shorter


def _is_number(gold: Gold, answer: str, said: str) -> bool:
    counted = count_word(answer or _final(said, True))
    if counted is not None:
        answer = str(counted)
    # Whatever needs more than arithmetic is not equal here.
    return compare(gold, _without_letter(answer), lambda *_: Verdict.DIFFERENT) is Verdict.EQUAL


def _final(answer: str, in_prose: bool) -> str:
    """What a sentence calls its answer, or the sentence."""
    return (said_answer(answer, anchored=True) or answer) if in_prose else answer


def _same_words(gold: str, answer: str, in_prose: bool) -> bool:
    wanted = words(normalised(gold)).replace(" ", "")
    for said in (answer, _final(answer, in_prose)):
        said = normalised(said)
        subject = _IS.match(said)
        ends = [said, said[subject.end() :]] if subject else [said]
        if wanted in (words(own).replace(" ", "") for own in ends):
            return True
    return False
