"""Is a held-out answer right? Where the answer is, the rewards say; what equals an integer is judged without their code."""

from __future__ import annotations

import re
from typing import Any

from ..rewards import answer_correctness, math_correctness
from ..rewards._answers import gold_answer, marked_answer, predicted_answer, spoken, usable
from ..rewards._notation import ascii_signs
from ..rewards._said import said_answer


def integer_match(completion: str, solution: Any) -> bool:
    """Whether a completion's answer is the gold.

    Answer and gold stand where ``rewards/_answers.py`` finds them. An integer is compared digit by digit: the answer has one
    number, or ends in one behind ``=`` after no other. Thousands may be grouped by commas; a decimal number is not an
    integer. Any other gold is compared as ``math_correctness`` does.
    """
    gold = _integer(gold_answer(solution) or "")
    if gold is None:
        return math_correctness([""], [completion], [solution]) == [1.0]
    answer = _integer(predicted_answer(completion) or "")
    return answer == gold


_NUMBER = re.compile(r"(?<![\w.^])([-+]?)([0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(\.[0-9]+)?")


_DRESS = re.compile(r"\\(?:text|mathrm)\s*\{[^{}]*\}|\\[$%,;! ]|\^\s*\{?\\circ\}?|[.!]\s*$")
_MORE = re.compile(r"[\\^/!*+√]")


def _integer(text: str) -> tuple[bool, str] | None:
    """Sign and digits of the integer that ``text`` comes to; None when it does not, or has decimals.

    Digits stay text: a policy can write more of them than ``int`` accepts.
    """
    *before, last = (_NUMBER.findall(side) for side in ascii_signs(text).split("="))
    if len(last) != 1 or last[0][2] or _MORE.search(_DRESS.sub("", text.rpartition("=")[2])):
        return None
    lone = {_digits(*side[0][:2]) for side in before if len(side) == 1 and not side[0][2]}
    found = _digits(*last[0][:2])
    return found if lone <= {found} else None


def _digits(sign: str, digits: str) -> tuple[bool, str]:
    digits = digits.replace(",", "").lstrip("0")
    return bool(digits) and sign == "-", digits


def answer_match(completion: str, solution: Any) -> bool:
    """Whether a completion's answer is the gold text, letter case, outer punctuation and spacing aside.

    Of a text that marks no answer all counts, or what it calls its answer. A gold that is no text, a number for one, is
    compared as ``answer_correctness`` does.
    """
    if not isinstance(solution, str):
        return answer_correctness([""], [completion], [solution]) == [1.0]
    said = spoken(completion)
    marked, _ = marked_answer(said)
    gold, _ = marked_answer(spoken(solution))
    wanted = _plain(solution if gold is None else gold)
    found = [said, said_answer(said, anchored=True) or ""] if marked is None else [marked]
    return wanted in [_plain(usable(own) or "") for own in found]


def _plain(text: str) -> str:
    return " ".join(re.sub(r"</?answer>", " ", text).lower().split()).strip(" .,;:!?()'\"")
