"""What rows of benchmarks and answers to them say: repairs of rows, judges that are not rewards, votes for a majority."""

from __future__ import annotations

from typing import Any

from ...rewards import countdown
from ...rewards._answers import marked_answer, predicted_answer, spoken, usable
from ...rewards._notation import normalised
from ...rewards._words import option_letter, yes_or_no


def whole_grids(row: dict[str, Any]) -> dict[str, Any]:
    """A row of Sudoku with grids of 16 characters: a reader of CSV takes them for numbers, and drops zeros in front."""
    return {**row, **{name: str(row[name]).zfill(16) for name in ("puzzle", "solution")}}


def lettered(row: dict[str, Any]) -> dict[str, Any]:
    """A row of MMLU whose solution is the letter of an option, not its place from 0."""
    place = row["solution"]
    return {**row, "solution": "ABCD"[place]} if isinstance(place, int) and 0 <= place < 4 else row


def made(prompts: list, completions: list, **columns: Any) -> list[float | None]:
    """1.0 where an expression of exactly the ``numbers`` makes ``target``, else 0.0; the reward ``countdown`` without its part score.

    Raises:
        ValueError: as ``countdown``.
    """
    return [None if own is None else float(own == 1.0) for own in countdown(prompts, completions, **columns)]


def answered(completion: str) -> str | None:
    """The answer that rewards find, without spaces, commas and capitals; None where there is none."""
    found = predicted_answer(completion)
    return None if found is None else "".join(normalised(found).split()).lower().replace(",", "")


def chosen(completion: str) -> str | None:
    """The letter of the option that is chosen; None where none is, or more than one."""
    return option_letter(normalised(_said(completion)))


def yes_no(completion: str) -> str | None:
    """``"yes"`` or ``"no"``; None for neither and for both."""
    return yes_or_no(_said(completion))


def written(completion: str) -> str | None:
    """All that is said, in small letters, with one space between words; None for nothing."""
    return " ".join(_said(completion).lower().split()) or None


def _said(completion: str) -> str:
    said = spoken(completion)
    marked, _ = marked_answer(said)
    return usable(said if marked is None else marked) or ""
