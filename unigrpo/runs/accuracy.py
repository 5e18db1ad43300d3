"""Is an answer right? An integer comparison that shares no code with the rewards it is meant to check."""

from __future__ import annotations

import re


def integer_match(completion: str, solution: str) -> bool:
    """Whether a completion's answer is the gold integer.

    The answer is the last integer after the last ``</think>``, or of the whole text where there is none; the gold is the
    last integer of ``solution``. Thousands may be grouped by commas. A decimal number is not an integer.
    """
    answer = _last_integer(completion.rpartition("</think>")[2])
    return answer is not None and answer == _last_integer(solution)


_NUMBER = re.compile(r"(?<![\w.])([-+]?)([0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(\.[0-9]+)?")


def _last_integer(text: str) -> tuple[bool, str] | None:
    """Sign and digits of the last number of ``text``; None when there is none or when it has decimals.

    Digits stay text: a policy can write more of them than ``int`` accepts.
    """
    numbers = _NUMBER.findall(text)
    if not numbers or numbers[-1][2]:
        return None
    sign, digits, _ = numbers[-1]
    digits = digits.replace(",", "").lstrip("0")
    return bool(digits) and sign == "-", digits


def answer_match(completion: str, solution: str) -> bool:
    """Whether a completion's answer is the gold text, letter case, outer punctuation and spacing aside.

    The answer is what follows the last ``</think>``; ``<answer>`` tags around either are dropped.
    """
    return _plain(completion.rpartition("</think>")[2]) == _plain(str(solution))


def _plain(text: str) -> str:
    return " ".join(re.sub(r"</?answer>", " ", text).lower().split()).strip(" .,;:!?()'\"")
