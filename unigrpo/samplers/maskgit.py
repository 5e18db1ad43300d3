"""Image tokens by confidence: draw everything that is hidden, keep the surest, hide the rest again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..models.placing import upload
from ..parts import MOST_STEPS, check_keys, key
from ..types import Canvas
from .base import GUIDANCE, IMAGE_GUIDANCE, TEMPERATURE, CanvasWriter, Stepwise, scatter, uniforms
from .schedules import MASK_SCHEDULE, MASK_SCHEDULES


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskGIT(Stepwise):
    """MMaDA's image sampler (``t2i_generate``; MaskGIT, arXiv 2202.04200), and with ``remask_noise_decay="constant"`` Lumina-DiMOO's
    (``generate_image``, arXiv 2510.06308).

    Each step draws a token for every hidden position, then hides the ``floor(N k)`` least confident of them again, where
    N counts all positions of the image and k is the schedule's share; at least one is kept hidden until the last step,
    and at least one is revealed by each. Confidence is log p plus noise, Gumbel's unless ``remask_noise`` is another.

    Args:
    """

    tasks: ClassVar[tuple[str, ...]] = ("t2i",)

    steps: int = key(16, "denoising steps", at_least=1, at_most=MOST_STEPS)
    temperature: float = key(1.0, TEMPERATURE, at_least=0)
    guidance_scale: float = key(3.5, GUIDANCE, at_least=0)
    image_guidance_scale: float = key(0.0, IMAGE_GUIDANCE, at_least=0)
    mask_schedule: str = key("cosine", MASK_SCHEDULE, choices=tuple(MASK_SCHEDULES))
    remask_temperature: float = key(1.0, "scale of the confidence noise at the first step", at_least=0)
    remask_noise: str = key(
        "gumbel",
        'what is added to the confidence: "gumbel" noise, or "gaussian", as MMaDA-Parallel-A\'s code does',
        choices=("gumbel", "gaussian"),
    )
    remask_noise_decay: str = key(
        "linear",
        """ "linear": the noise has the scale (1 - u), u the share of steps done; "compound" multiplies the scale by (1 - u) again
        at every step, as MMaDA's code does: after half of 15 steps a tenth is left; "constant": as much at every step, as in
        Lumina-DiMOO's code""",
        choices=("linear", "compound", "constant"),
    )

    def __post_init__(self) -> None:
        check_keys(self)

    def advance(
        self, model: Any, writer: CanvasWriter, generators: list[torch.Generator], at: Sequence[int] | None = None
    ) -> Iterator[tuple[int, int]]:
        """As in ``Stepwise``; ``at`` are the steps that are taken, in order, the last among them; None = all."""
        scale, everything = self.remask_temperature, image_positions(writer.canvas)
        for step in range(self.steps) if at is None else at:
            done = (step + 1) / self.steps
            start = scale if self.remask_noise_decay == "compound" else self.remask_temperature
            scale = start * (1.0 if self.remask_noise_decay == "constant" else 1 - done)
            share = self._share(done)
            (held,) = writer.read(writer.hidden.sum(dim=1))
            if any(held):
                self._step(model, writer, held, everything, step, share, scale, generators)
            yield step + 1, self.steps

    def _share(self, done: float) -> float:
        """What is hidden again after the share ``done`` of the steps."""
        return MASK_SCHEDULES[self.mask_schedule](done)

    def _step(
        self, model, writer: CanvasWriter, held: list[int], image, step: int, share: float, scale: float, generators
    ) -> None:
        """One step of the rows that still hide something; ``held`` are the holes of all rows."""
        active = [row for row, count in enumerate(held) if count]
        rows, counts, streams = (
            upload(active, image.device),
            [held[row] for row in active],
            [generators[row] for row in active],
        )
        image, holes = image[rows], writer.hidden[rows]
        tokens, logps, sampling_logps, noise = self._draw(model, writer, rows, holes, counts, image, streams)
        keep = torch.zeros_like(holes)
        if step < self.steps - 1:
            sizes, unknown = image.sum(dim=1), upload(counts, image.device)
            # In fp32: 64 x cos(pi / 3) is 32, not 31.
            again = torch.floor(sizes * torch.tensor(share, dtype=torch.float32)).long()
            again = torch.minimum(again, unknown - 1).clamp(min=1)
            confidence = (logps.clamp(min=math.log(1e-20)) + scale * noise).masked_fill(~holes, torch.inf)
            keep = least(confidence, again) & holes
        writer.write(rows, holes & ~keep, tokens, sampling_logps, step)

    def _draw(self, model, writer: CanvasWriter, rows, holes, counts, image, streams) -> tuple[Tensor, ...]:
        """Tokens, their log-probabilities under the model and under the law they were drawn from, and noise.

        All ``[b, L]``, at the ``holes`` of the ``image``.
        """
        drawn = writer.draw(model, rows, holes, counts, self.temperature, streams, truncation=self.truncation)
        noise = NOISES[self.remask_noise](uniforms(counts, streams, holes.device)).float()
        columns = (drawn.tokens, drawn.logps, drawn.sampling_logps, noise)
        return tuple(scatter(holes, column) for column in columns)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise of uniform numbers in [0, 1), elementwise."""
    return -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()


def gaussian(uniform: Tensor) -> Tensor:
    """Standard normal noise of uniform numbers in [0, 1), elementwise."""
    return torch.special.ndtri(uniform.clamp(min=1e-20))


NOISES = {"gumbel": gumbel, "gaussian": gaussian}
"""By name the noise of a confidence, made from uniform numbers."""


def image_positions(canvas: Canvas) -> Tensor:
    """``[B, L]`` bool, every position of the image that is drawn: the holes, and given codes that touch them.

    A canvas to complete has codes outside its holes. Codes of another image, in the prompt, stand apart and do not count.
    """
    inside = (canvas.token_space.contains(canvas.ids) | canvas.fill_mask) & canvas.attention_mask
    # Runs of neighbours are numbered from 1; a run counts if it has a hole.
    run = (inside & ~torch.nn.functional.pad(inside[:, :-1], (1, 0))).cumsum(dim=1) * inside
    drawn = torch.zeros(len(inside), inside.shape[1] + 1, dtype=torch.int64, device=inside.device)
    drawn.scatter_add_(1, run, (canvas.fill_mask & inside).long())
    return inside & (drawn.gather(1, run) > 0)


def least(confidence: Tensor, count: Tensor) -> Tensor:
    """The positions ``[b, L]`` strictly below the ``count [b]``-th smallest confidence (counted from 0) of their row.

    ``count`` = L takes all of them.
    """
    ascending = torch.nn.functional.pad(confidence.sort(dim=1).values, (0, 1), value=torch.inf)
    cutoff = ascending.gather(1, count[:, None])
    return confidence < cutoff
