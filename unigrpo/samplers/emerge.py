"""Image tokens in random order: every hidden token is equally likely to come next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..models.placing import upload
from ..parts import MOST_STEPS, check_keys, key
from .base import GUIDANCE, IMAGE_GUIDANCE, TEMPERATURE, CanvasWriter, Stepwise, scatter, uniforms
from .schedules import MASK_SCHEDULE, MASK_SCHEDULES


@dataclass(frozen=True, slots=True, kw_only=True)
class Emerge(Stepwise):
    """MaskGRPO's sampler (arXiv 2510.02880): no confidence ranking, so exploration is not spent on easy background.

    From share k(u) to k(u') of hidden tokens, each hidden token stays hidden with probability k(u') / k(u), independently,
    and is drawn otherwise; the last step draws all that is left. Written tokens never change, and the expected number of
    hidden ones follows the schedule exactly. A row that reveals nothing in a step costs no forward.
    """

    tasks: ClassVar[tuple[str, ...]] = ("t2i",)

    steps: int = key(16, "denoising steps", at_least=1, at_most=MOST_STEPS)
    temperature: float = key(1.0, TEMPERATURE, at_least=0)
    guidance_scale: float = key(3.5, GUIDANCE, at_least=0)
    image_guidance_scale: float = key(0.0, IMAGE_GUIDANCE, at_least=0)
    mask_schedule: str = key("cosine", MASK_SCHEDULE, choices=tuple(MASK_SCHEDULES))

    def __post_init__(self) -> None:
        check_keys(self)

    def advance(
        self, model: Any, writer: CanvasWriter, generators: list[torch.Generator], at: Sequence[int] | None = None
    ) -> Iterator[tuple[int, int]]:
        """As in ``MaskGIT``."""
        schedule = MASK_SCHEDULES[self.mask_schedule]
        # What is shown next does not depend on what was drawn: the host knows it without asking the device.
        hidden = writer.hidden.to("cpu", copy=True)
        then = schedule(0.0)
        for step in range(self.steps) if at is None else at:
            now, then = then, schedule((step + 1) / self.steps)
            stay = then / now if step < self.steps - 1 else 0.0
            chances = scatter(hidden, uniforms(hidden.sum(dim=1).tolist(), generators, "cpu"))
            shown = hidden & (chances >= stay)
            hidden &= ~shown
            counts = shown.sum(dim=1).tolist()
            active = [row for row, count in enumerate(counts) if count]
            if active:
                rows, places = upload(active, writer.ids.device), upload(shown[active], writer.ids.device)
                counts, streams = [counts[row] for row in active], [generators[row] for row in active]
                drawn = writer.draw(model, rows, places, counts, self.temperature, streams, truncation=self.truncation)
                tokens, logps = scatter(places, drawn.tokens), scatter(places, drawn.sampling_logps)
                writer.write(rows, places, tokens, logps, step)
            yield step + 1, self.steps
