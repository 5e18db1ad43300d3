"""Words, names, option letters, yes and no, number words."""

from __future__ import annotations

import re
import unicodedata


YES_NO = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
"""What means yes and what means no."""

_SPELLED = {"grey": "gray"}
_EDGES = " \t\n.,;:!?\"'`*_$()[]{}<>“”‘’"
_GROUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s?\{([^{}]*)\}")
_LETTER = re.compile(r"\(?([A-Za-z])[).:]{0,2}")
_OPTION = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])[).:])(?:\s(?!\s)|(?<=\)))(.*)", re.DOTALL)
_NAMED = re.compile(
    r"\(([A-Z])\)|\b(?i:option|choice|answer)(?i: is)?:?[ *]{1,3}([A-Z])\b(?!['’])|\b(?i:it['’]s|it is) ([A-Z])\b(?!['’]| [a-z])"
)
_ALSO = re.compile(r"\)?(?:\s?[,/]\s?|,?\s(?:or|and)\s)(?:option )?\(?[A-Z](?![\w'’])")
_DENIED = re.compile(r"\b(?i:not|rather than|instead of)(?i: option| choice| answer)? \(?[A-Z]\)?(?![\w'’])")
_HEDGE = re.compile(r"(yes|no|true|false)\b[\s,;/]{0,3}(?:(?:and|or|but|maybe)\b[\s,]{0,3}){0,2}(yes|no|true|false)\b")

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_COUNTS = {word: value for value, word in enumerate(_UNITS.split())} | {
    word: 10 * value for value, word in enumerate(_TENS.split(), start=2)
}
_COUNT = re.compile(r"([a-z]{3,9})(?:[- ]([a-z]{3,5}))?")


def words(text: str) -> str:
    """A text letter for letter, without case, articles and the punctuation around it."""
    text = unicodedata.normalize("NFKC", _GROUP.sub(r"\1", text)).casefold()
    text = " ".join(text.split()).strip(_EDGES)
    for article in ("a ", "an ", "the "):
        text = text.removeprefix(article)
    return " ".join(_SPELLED.get(word, word) for word in text.split(" "))


def count_word(text: str) -> int | None:
    """The number that a word says, up to ninety-nine: ``Ten``, ``twenty-one``."""
    match = _COUNT.fullmatch(words(text))
    if match is None or match[1] not in _COUNTS:
        return None
    tens, units = _COUNTS[match[1]], match[2]
    if units is None:
        return tens
    return tens + _COUNTS[units] if tens >= 20 and 0 < _COUNTS.get(units, 0) < 10 else None


def letter(text: str) -> str | None:
    """The letter that a text is, with brackets or without."""
    match = _LETTER.fullmatch(_GROUP.sub(r"\1", text).strip())
    return match[1] if match else None


def option(answer: str) -> tuple[str, str] | None:
    """Letter and text of an answer that begins with its option, ``(B) 12``; None for any other."""
    match = _OPTION.fullmatch(_GROUP.sub(r"\1 ", answer).strip())
    return ((match[1] or match[2]).upper(), match[3].strip()) if match else None


def option_letter(answer: str) -> str | None:
    """The option that an answer chooses, as a capital letter; None where it chooses none, or more than one."""
    answer = _DENIED.sub("", _GROUP.sub(r"\1", answer)).strip()
    alone, led = letter(answer), option(answer)
    if alone:
        return alone.upper()
    if led:
        return None if re.match(r"\(?[A-Z](?:[).,:]|$)|(?:or|and)\b", led[1]) else led[0]
    named = list(_NAMED.finditer(answer))
    if not named or any(_ALSO.match(answer, own.end()) for own in named[-2:]):
        return None
    return next(group for group in named[-1].groups() if group)


def yes_or_no(answer: str) -> str | None:
    """Yes or no where an answer begins with one of them and does not say both; None for any other."""
    answer = words(answer)
    first = answer.partition(" ")[0].strip(_EDGES)
    hedge = _HEDGE.match(answer)
    if hedge and YES_NO[hedge[1]] != YES_NO[hedge[2]]:
        return None
    return YES_NO.get(first)
