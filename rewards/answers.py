"""Is the short answer of a completion the right one? Numbers, option letters, yes or no, words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from numbers import Real
from typing import Any

from ._answers import _WORD, MAX_TEXT, _is_prose, _last_boxed, _last_tagged, _usable, gold_answer
from ._numbers import Number, last_number, read_number, same_number
from .format import CLOSE, OPEN
from .text import completion_text


MAX_ANSWER = 200
"""Characters of an answer that is compared as text; a longer one is no short answer."""

_YES_NO = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}

_LETTER = re.compile(r"\(?([A-Za-z])[).:]{0,2}")
_OPTION = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])[).:])\s?(.*)", re.DOTALL)
_NAMED_OPTION = re.compile(r"\(([A-Z])\)|\b(?i:option|choice|answer)(?i: is)?:?[ *]{1,3}([A-Z])\b(?!['’])")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s?\{([^{}]*)\}")
_SHORT_UNIT = re.compile(r"(?<=[0-9])\s?(?:[mghs]|[\u4e00-\u9fff]{1,4})(?:\^?[23]|[²³])?$")
_EDGES = " \t\n.,;:!?\"'`*_$()[]{}<>“”‘’"


def answer_correctness(
    prompts: list,
    completions: list,
    solution: list | None = None,
    *,
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """1.0 where a completion's short answer is the solution, 0.0 where it is not; range {0.0, 1.0}.

    The answer is looked for behind the last ``</think>``; reasoning that never ends gives none. It is the last
    ``\\boxed{}``, else the last ``<answer></answer>``, else what is said. The solution decides how it is compared:

    * a number, with a unit or without: exactly, units aside; in a sentence the last number counts
    * a letter: as the letter of an option, ``B``, ``(B)``, ``B. 145°``, ``the answer is B``
    * yes or no, true or false: with the first word of the answer
    * anything else: letter for letter, without case, articles and the punctuation around it

    Formulas are compared letter for letter too: ``math_correctness`` knows more about those. None where a completion
    is not text or its solution is None or empty. Time is linear in the length of a completion.

    Args:
        solution: dataset column: a number, a bool, a text, or a text with ``<answer>145°</answer>`` in it.
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
        scores.append(None if gold is None else float(_is_correct(gold, text)))
    if log_metric is not None:
        log_metric("answer_correctness/unparsable_gold", float(unparsable))
    return scores


def _gold(solution: Any) -> str | None:
    """The answer in a solution column; None where there is none, or none that is short."""
    if isinstance(solution, bool):
        return "yes" if solution else "no"
    if isinstance(solution, Real):
        return gold_answer(solution)
    if not isinstance(solution, str):
        return None
    text, _ = _answer(solution[-MAX_TEXT:])
    _, marker, answer = text.rpartition("####")
    if marker:
        text = answer.strip().partition("\n")[0]
    answer = _usable(text)
    return answer if answer is not None and len(answer) <= MAX_ANSWER and _normalised(answer) else None


def _answer(text: str) -> tuple[str, bool]:
    """What a text gives as its answer, and whether the answer is marked as such."""
    _, closed, said = text.rpartition(CLOSE)
    if not closed and OPEN in text:
        return "", False
    boxed = _last_boxed(said)
    marked = _last_tagged(said) if boxed is None else boxed
    return (said, False) if marked is None else (marked, True)


def _is_correct(gold: str, text: str) -> bool:
    said, is_marked = _answer(text[-MAX_TEXT:])
    answer = _usable(said) or ""
    number = _read(gold)
    if number is not None:
        return any(same_number(number, candidate) for candidate in _numbers(answer or said, is_marked))
    letter = _LETTER.fullmatch(_LATEX_TEXT.sub(r"\1", gold))
    if letter:
        return _option(answer or said) == letter[1].upper()
    return _word(said, is_marked, gold) == _YES_NO.get(_normalised(gold), _normalised(gold))


def _numbers(answer: str, is_marked: bool) -> list[Number]:
    """The number that an answer is, or else ends in: behind its option, behind its last equals sign, in a sentence."""
    option = _OPTION.fullmatch(answer)
    found = _read(option[3] if option else answer) or _read(answer.rpartition("=")[2])
    if found is None and (_is_prose(answer) if is_marked else _WORD.search(answer)):
        found = read_number(last_number(answer) or "")
    return [] if found is None else [found]


def _read(text: str) -> Number | None:
    """A number, also one with a unit of a single letter, which is a variable in a formula: ``5 m``."""
    text = text.strip()
    return read_number(text) or read_number(_SHORT_UNIT.sub("", text))


def _option(answer: str) -> str | None:
    answer = _LATEX_TEXT.sub(r"\1", answer)
    match = _LETTER.fullmatch(answer) or _OPTION.fullmatch(answer)
    named = [match] if match else list(_NAMED_OPTION.finditer(answer))
    letters = next((group for group in named[-1].groups()[:2] if group), None) if named else None
    return None if letters is None else letters.upper()


def _word(said: str, is_marked: bool, gold: str) -> str:
    """The answer as a normalised word or phrase, with yes and no for all that means them where the gold does."""
    answer = _normalised(said)
    if not is_marked:
        for lead in ("answer is", "answer:"):
            answer = _normalised(answer.rpartition(lead)[2])
    if _normalised(gold) in _YES_NO:
        first = answer.partition(" ")[0].strip(_EDGES)
        return _YES_NO.get(first, answer)
    return answer


def _normalised(text: str) -> str:
    text = unicodedata.normalize("NFKC", _LATEX_TEXT.sub(r"\1", text)).casefold()
    text = " ".join(text.split()).strip(_EDGES)
    for article in ("a ", "an ", "the "):
        text = text.removeprefix(article)
    return text
