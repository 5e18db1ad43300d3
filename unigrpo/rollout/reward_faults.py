"""What rewards did wrong: in words, counted, and an error or a warning."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import Overdue, ReturnError, RewardError
from .reward_values import shortened


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What one reward did wrong in one call.

    Attributes:
        kind: ``"raised"``, ``"timeout"`` or ``"returned"``: the call failed as a whole; ``"score"``: only ``places`` have none;
            ``"log"``: the scores are good.
        text: what it did, to go on from its name.
        places: of the answers concerned, in the call.
        error: what it ended with.
    """

    kind: str
    text: str
    places: list[int]
    error: BaseException | None = None


def failed_call(error: BaseException, seconds: float | None, places: list[int]) -> Fault:
    """The fault of a call that ended with ``error`` instead of one score an answer."""
    if isinstance(error, Overdue):
        kind, text = "timeout", f"did not return within reward_timeout={seconds} seconds"
    elif isinstance(error, ReturnError):
        kind, text = "returned", str(error)
    elif isinstance(error, asyncio.CancelledError):
        kind, text = "raised", "cancelled itself"
    else:
        kind, text = "raised", f"raised {type(error).__name__}: {shortened(error, 300)}{_places(error)}{_cure(error)}"
    return Fault(kind=kind, text=text, places=places, error=error)


def _cure(error: BaseException) -> str:
    """What to do about an error that rewards for conversations raise on texts."""
    if not (isinstance(error, TypeError) and "string indices must be integers" in str(error)):
        return ""
    return ". A prompt that is a string has a string for its completion; of a list of messages it is a list of one message"


def _places(error: BaseException) -> str:
    """The reward's own line, and the one that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if not _is_ours(Path(frame.filename))]
    places = dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[:1] + frames[-1:])
    return f" ({' > '.join(places)})" if places else ""


def _is_ours(file: Path) -> bool:
    """Whether a line is of the library; shipped rewards are rewards like any other."""
    library = Path(__file__).parents[1]
    return file.is_relative_to(library) and not file.is_relative_to(library / "rewards")


def shown(prompt: Any) -> str:
    """A prompt as errors show it: of a conversation its last message."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        prompt = prompt[-1].get("content", prompt)
    return repr(shortened(prompt))


def described(fault: Fault, name: str, answers: int, prompt: Any, empty: Sequence[str] = ()) -> str:
    """What the reward ``name`` did in a call with so many ``answers``.

    Args:
        prompt: of the first answer concerned.
        empty: columns that none of the answers' rows has.
    """
    one = fault.kind == "score"
    whose = "for the answer to" if one else f"when it was called with {answers} answers, the first to"
    lacking = f"; it got None for {', '.join(map(repr, empty))}, which none of these rows has" if empty else ""
    return (
        f"reward {name!r} {fault.text}, {whose} the prompt {shown(prompt)}{lacking if fault.kind == 'raised' else ''}"
    )


def error_of(fault: Fault, said: str) -> RewardError:
    """What ends a run with ``reward_error`` "raise"."""
    slow = "raise reward_timeout, or " if fault.kind == "timeout" else ""
    return RewardError(
        f"{said}. Mend the reward, {slow or 'or '}set reward_error='none' to go on without what it fails to score"
    )


def fault_metrics(names: list[str], counts: Tensor, bounded: bool) -> dict[str, float]:
    """``rewards/<name>/errors`` and, of calls that are ``bounded`` in time, ``rewards/<name>/timeouts``.

    ``counts`` are ``Scores.faults`` ``[F, 2]``.
    """
    kinds = ("errors", "timeouts") if bounded else ("errors",)
    return {
        f"rewards/{name}/{kind}": float(own[number])
        for name, own in zip(names, counts, strict=True)
        for number, kind in enumerate(kinds)
    }
