"""How much time is left."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment ``at`` of ``time.monotonic()``, seconds."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """So many ``seconds`` from now."""
        return cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds until then, negative afterwards."""
        return self.at - time.monotonic()

    def fits(self, seconds: float) -> bool:
        """Whether work of so many ``seconds`` ends before it."""
        return seconds < self.left

    def within(self, seconds: float) -> Deadline:
        """The earlier one of this and ``seconds`` from now."""
        return Deadline(min(self.at, time.monotonic() + seconds))
