"""What rewards did wrong: in words, counted, and an error or a warning."""

from __future__ import annotations

import asyncio
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import Overdue, ReturnError, RewardError
from .reward_values import shortened


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What one reward did wrong in one call.

    Attributes:
        kind: ``"raised"``, ``"timeout"`` or ``"returned"``: the call failed as a whole; ``"score"``: only ``rows`` have none;
            ``"log"``: the scores are good.
        text: what it did, to go on from its name.
        rows: the places of the answers concerned.
        error: what it ended with.
    """

    kind: str
    text: str
    rows: list[int]
    error: BaseException | None = None


def failed_call(error: BaseException, seconds: float | None, rows: list[int]) -> Fault:
    """The fault of a call that ended with ``error`` instead of one score an answer."""
    if isinstance(error, Overdue):
        kind, text = "timeout", f"did not return within reward_timeout={seconds} seconds"
    elif isinstance(error, ReturnError):
        kind, text = "returned", str(error)
    elif isinstance(error, asyncio.CancelledError):
        kind, text = "raised", "cancelled itself"
    else:
        kind, text = "raised", f"raised {type(error).__name__}: {shortened(error, 300)}{_places(error)}"
    return Fault(kind=kind, text=text, rows=rows, error=error)


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


@dataclass(slots=True)
class FaultLog:
    """The faults of a run's rewards.

    Attributes:
        names: of the rewards.
        counts: ``[F, 2]`` int64 since ``take``: answers that a fault left without their score, with one for each wrong log;
            and calls that were overdue.
    """

    names: list[str]
    counts: Tensor = field(init=False)
    _warned: set[tuple[str, str]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(len(self.names), 2, dtype=torch.int64)

    def take(self) -> Tensor:
        """``counts``, which begin again at 0."""
        taken, self.counts = self.counts, torch.zeros_like(self.counts)
        return taken

    def add(self, place: int, fault: Fault, prompts: list, on_error: str) -> None:
        """Counts what the reward at ``place`` did in a call with ``prompts``, and warns once for each kind of it.

        Raises:
            RewardError: ``on_error`` is "raise".
        """
        self.counts[place] += torch.tensor([len(fault.rows), fault.kind == "timeout"])
        name, prompt = self.names[place], shown(prompts[fault.rows[0]])
        one = fault.kind == "score"
        whose = "for the answer to" if one else f"when it was called with {len(prompts)} answers, the first to"
        said = f"reward {name!r} {fault.text}, {whose} the prompt {prompt}"
        if on_error == "raise":
            slow = "raise reward_timeout, or " if fault.kind == "timeout" else ""
            raise RewardError(
                f"{said}. Mend the reward, {slow or 'or '}set reward_error='none' to go on without what it fails to score"
            ) from fault.error
        self.warn(
            f"{said}. The run goes on without that (reward_error='none'), and counts it in rewards/{name}/errors",
            fault.kind,
            name,
        )

    def warn(self, message: str, kind: str, name: str = "") -> None:
        """A warning, given once for each ``kind`` and reward of the run."""
        if (name, kind) not in self._warned:
            self._warned.add((name, kind))
            warnings.warn(message, stacklevel=2)

    def metrics(self, counts: Tensor, bounded: bool) -> dict[str, float]:
        """``rewards/<name>/errors`` and, of calls that are ``bounded`` in time, ``rewards/<name>/timeouts``."""
        kinds = ("errors", "timeouts") if bounded else ("errors",)
        return {
            f"rewards/{name}/{kind}": float(own[number])
            for name, own in zip(self.names, counts, strict=True)
            for number, kind in enumerate(kinds)
        }
