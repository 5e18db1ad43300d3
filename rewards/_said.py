"""The answer in running text: behind "the answer is", or the last expression with a number."""

from __future__ import annotations

import re
from collections import deque

from ._notation import ascii_signs
from ._numbers import GROUPED, read_number
from ._units import CURRENCY, SCALES


_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}+")
_COMMAND = re.compile(r"\\(?:text[a-z]*|begin|end|operatorname|math[a-z]*)\s?\{[^{}]*\}|\\[A-Za-z]+")
_ANCHOR = re.compile(
    r"(?i:(?<![</])\b(?:answer|result|solution)s?\b|答案|\b(?:option|choice)\b)\s{0,3}+(?:\*\*)?+\s{0,3}+"
    r"(?i:is|are|was|equals|would be|comes to)?+(?:是|为)?+\s{0,3}+[:=]?+\s{0,3}+(?:\*\*)?+"
)
_SENTENCE_END = re.compile(r"[.!?。](?=\s|$)|\n|[;。]")
_SPAN = re.compile(r"(\$\$|\\\(|\\\[|\*\*|\$)")
_CLOSER = {"$$": "$$", "$": "$", "\\(": "\\)", "\\[": "\\]", "**": "**"}
_FUNCTIONS = {"pi", "sqrt", "sin", "cos", "tan", "ln", "log", "exp"}
MAX_SPAN = 300

_BRACED = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]{0,60}+\}){0,60}+\}){0,60}+\}"
_OPERAND = (
    rf"(?:{CURRENCY}\s?)?+"
    rf"(?:\\[dtc]?frac\s?(?:{_BRACED}|[0-9]){{2}}|\\sqrt(?:\[[0-9]\])?\s?(?:{_BRACED}|[0-9A-Za-z])|\\d?binom{_BRACED}{{2}}|\\(?:pi|infty)(?![A-Za-z])"
    rf"|(?<![\^_A-Za-z0-9])(?<!\^\{{){GROUPED}(?:[eE][-+]?[0-9]{{1,3}}(?![0-9A-Za-z]))?+|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z'’])|\([^()\n]{{1,60}}\))"
    rf"(?:\s?\^\s?(?:{_BRACED}|\\circ|[-+]?[0-9]+|[A-Za-z])|!|\s?\\?%|\s(?:{'|'.join(SCALES)}|percent)(?![A-Za-z]))*+"
)
_JOINED = r"(?:\s{0,2}(?:[-+*/=]|\\(?:times|cdot|div|approx)(?![A-Za-z]))\s{0,2}|\s?(?=\\(?:sqrt|frac|pi))|(?=[A-Za-z(])|(?<=[A-Za-z)])(?=[0-9(])|\s(?=[0-9]{1,9}/[0-9]))"
_RUN = re.compile(
    # A sign after a word, a number or a bracket is an operator.
    rf"(?:(?<![\w)\]}}])[-+]\s?(?=[0-9$.\\]))?{_OPERAND}(?:{_JOINED}[-+]?{_OPERAND}){{0,200}}+"
)
_HAS_NUMBER = re.compile(r"(?<![\^_{A-Za-z])[0-9]|\\(?:[dtc]?frac|sqrt|d?binom|pi|infty)")
_LEFT_OVER = re.compile(r"(?:[\^√_/*]|[\w)\]}]\s?[-+]|\\[A-Za-z]*)\s?$")
_DENIED = re.compile(r"(?:\bnot|n['’]t|\bcannot(?: be)?)\s{0,3}(?:be\s{1,3})?$", re.IGNORECASE)
_HEDGED = re.compile(r"\s{0,2}\(\s?or\b", re.IGNORECASE)
_OR = re.compile(r"\b(?:or)\b")
_LIST = re.compile(r"\s?,?\s?\b(?:and|or)\b\s?|\s?(?:[,;]|\\?&)\s?")


def is_prose(answer: str) -> bool:
    """Words around an expression, and not simply a number with a unit."""
    bare = _COMMAND.sub(" ", answer)
    return sum(word not in ("and", "or") for word in _WORD.findall(bare)) > 1 and read_number(answer) is None


def said_answer(text: str, anchored: bool = False, first: bool = False) -> str | None:
    """The answer in running text, None where there is none.

    Args:
        anchored: only what the text calls its answer.
        first: the first expression with a number, instead of the last.
    """
    text = ascii_signs(text)
    anchor = deque(_ANCHOR.finditer(text), maxlen=1)
    if anchor:
        found = _behind(text[anchor[0].end() :])
        if found is not None:
            return found
    return None if anchored else _expression(text, first)


def _behind(text: str) -> str | None:
    """The answer in what follows "the answer is": a marked formula, a whole sentence, its first or last expression."""
    text = text.lstrip()
    opener = _SPAN.match(text)
    if opener:
        content = _content(text, opener)
        if content is not None:
            return content.strip().rstrip(".")
    end = _SENTENCE_END.search(text)
    sentence = (text[: end.start()] if end else text).strip(" *.:`")
    if not sentence:
        return None
    if not re.search("[0-9]", sentence):
        return sentence if len(sentence) <= 200 else None
    return _expression(sentence, first=bool(_RUN.match(sentence)))


def _content(text: str, opener: re.Match[str]) -> str | None:
    """What stands between a mark and its end, if it is no prose: a ``$`` may be a currency."""
    start = opener.end()
    end = text.find(_CLOSER[opener[1]], start, start + MAX_SPAN)
    if end <= start:
        return None
    content = text[start:end]
    prose = (
        opener[1] != "**"
        and " " in content.strip()
        and any(own not in _FUNCTIONS for own in _WORD.findall(_COMMAND.sub(" ", content)))
    )
    return None if prose or "\n\n" in content else content


def _spans(text: str) -> list[tuple[int, int, str]]:
    """The marked formulas of a text: start, end, content."""
    found, position = [], 0
    while opener := _SPAN.search(text, position):
        content = _content(text, opener)
        position = opener.end()
        if content is not None:
            found.append((opener.start(), opener.end() + len(content), content))
            position = opener.end() + len(content) + len(opener[1])
    return found


def _expression(text: str, first: bool) -> str | None:
    """The last expression of a text with a number in it, or the first; those that are listed together are one."""
    marked = _spans(text)
    spans = [span for span in marked if _HAS_NUMBER.search(span[2])] or marked
    runs = [(run.start(), run.end()) for run in _RUN.finditer(text) if _HAS_NUMBER.search(run[0])]
    # A formula that ends the text is what it comes to, number or not.
    if marked and not first and not text[marked[-1][1] :].strip(" .!$)]*\\\n"):
        return marked[-1][2].strip()
    if not runs:
        return spans[-1][2].strip() if spans else None
    left = right = 0 if first else len(runs) - 1
    start, end = runs[left]
    if _DENIED.search(text[max(0, start - 20) : start]) or _HEDGED.match(text, end):
        return None
    for opened, closed, content in spans:
        if opened <= start < closed:
            return content.strip()
    listed = not text[runs[-1][1] :].strip(" .!\n*")
    while first and right + 1 < len(runs) and _joins(text[runs[right][1] : runs[right + 1][0]], listed):
        right += 1
    while not first and left and _joins(text[runs[left - 1][1] : runs[left][0]], listed):
        left -= 1
    if left < right:
        return ", ".join(text[own:other] for own, other in runs[left : right + 1])
    # What the expression could not take in makes it another one: the 5 of "√√5" is no answer.
    left_over = _LEFT_OVER.search(text[max(0, start - 12) : start])
    return (left_over[0] if left_over and not first else "") + text[start:end]


def _joins(between: str, listed: bool) -> bool:
    """Do two expressions with this text between them make one answer: a list, or a hedge, 8 or maybe 9?"""
    if len(between) > 60:
        return False
    if _OR.search(between) and not re.search(r"[.!?\n]", between):
        return True
    return listed and _LIST.fullmatch(between) is not None
