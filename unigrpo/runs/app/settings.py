"""The settings of the page: those that change an answer, with what they begin with and may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A number, whole where ``whole``, in ``[least, most]``; what it is without the checkpoint's word, for text and for pictures."""

    name: str
    label: str
    least: float
    most: float
    of_text: float
    of_pictures: float
    whole: bool = True

    def checked(self, value: Any) -> Any:
        """The value as it is used.

        Raises:
            RecipeError: it is no such number.
        """
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not self.least <= value <= self.most or (self.whole and value != int(value)):
            kind = "a whole number" if self.whole else "a number"
            raise RecipeError(f"{self.name}={value!r} must be {kind} from {self.least:g} to {self.most:g}")
        return int(value) if self.whole else float(value)


SETTINGS = {
    own.name: own
    for own in (
        Setting(
            name="temperature",
            label="Temperature",
            least=0,
            most=2,
            of_text=0,
            of_pictures=1,
            whole=False,
        ),
        Setting(name="steps", label="Steps", least=1, most=4096, of_text=256, of_pictures=16),
        Setting(
            name="max_completion_length",
            label="Length",
            least=1,
            most=4096,
            of_text=256,
            of_pictures=256,
        ),
        Setting(name="block_length", label="Block length", least=1, most=4096, of_text=32, of_pictures=32),
        Setting(
            name="guidance_scale",
            label="Guidance",
            least=0,
            most=20,
            of_text=0,
            of_pictures=3.5,
            whole=False,
        ),
        Setting(name="seed", label="Seed", least=0, most=2**31 - 1, of_text=0, of_pictures=0),
    )
}

OF_TASK = {
    "text": tuple(SETTINGS),
    "mmu": tuple(SETTINGS),
    "t2i": ("temperature", "steps", "guidance_scale", "seed"),
    "r2i": ("max_completion_length", "guidance_scale", "seed"),
}
"""What may be set on the tab of each task. Steps and temperature of a thought and of its picture are their own."""
