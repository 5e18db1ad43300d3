"""Dream's sampler: the whole answer at once, in one of four token orders, on a schedule of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..models.base import DiffusionPolicy
from ..models.placing import upload
from ..parts import MOST_STEPS, check_keys, internal, key
from ..types import Canvas
from .base import (
    GUIDANCE,
    TEMPERATURE,
    CanvasWriter,
    Drawn,
    Stepwise,
    check_streams,
    scatter,
    uniforms,
    warn_of_blocks,
)
from .semi_autoregressive import most_confident


ORDERS = ("origin", "maskgit_plus", "topk_margin", "entropy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dream(Stepwise):
    """``diffusion_generate`` of Dream (arXiv 2508.15487), Dream-Coder and DiffuCoder.

    There are no blocks. Times fall from 1 to ``eps`` in equal steps; from t to s a row with m holes commits int(m (1 - s / t)) of
    them, and the last step all that are left. Steps that would commit nothing run nothing. There m is the mean over the rows of
    a batch, which is the same where all have equally many holes; here a row does not depend on its neighbours. Its ``top_p`` and
    ``top_k`` rank by what they leave of the law, here tokens are ranked by the whole of it.

    Args:
        stop: ``"first"`` or ``"never"``, as ``SemiAutoregressive``'s.
    """

    tasks: ClassVar[tuple[str, ...]] = ("text", "mmu")

    steps: int = key(128, "denoising steps of the whole answer", at_least=1, at_most=MOST_STEPS)
    temperature: float = key(1.0, TEMPERATURE, at_least=0)
    alg: str = key(
        "entropy",
        """which holes a step of Dream's sampler commits: those of highest probability ("maskgit_plus"), of the largest lead over the
        second token ("topk_margin"), of least entropy ("entropy"), or each by chance ("origin")""",
        choices=ORDERS,
    )
    alg_temp: float = key(
        0.0, "0 = the best holes, else they are drawn from softmax(what ranks them / alg_temp)", at_least=0
    )
    guidance_scale: float = key(0.0, GUIDANCE, at_least=0)
    eps: float = internal(1e-3)
    stop: str = internal("first")

    def __post_init__(self) -> None:
        check_keys(self)
        if self.stop not in ("first", "never"):
            raise ValueError(f"stop={self.stop!r}: there are no blocks; choose 'first' or 'never'")
        if self.alg == "origin" and self.alg_temp:
            raise ValueError(
                f"alg_temp={self.alg_temp} with alg='origin', which ranks nothing: leave it out, or choose another alg"
            )

    def check_policy(
        self, policy: DiffusionPolicy, length: int = 0, where: str = "", steps_key: str = "steps"
    ) -> None:
        """As in ``Stepwise``: blocks of attention want a sampler that finishes each before the next."""
        if policy.block_size is not None:
            warn_of_blocks("dream", policy)

    def begin(self, policy: DiffusionPolicy, canvas: Canvas, generators: list[torch.Generator]) -> CanvasWriter:
        """The canvas, nothing written yet."""
        check_streams(generators, canvas)
        return CanvasWriter(canvas, policy, self.guidance_scale, generators, self.stop)

    def advance(
        self, model: Any, writer: CanvasWriter, generators: list[torch.Generator]
    ) -> Iterator[tuple[int, int]]:
        """As in ``Stepwise``."""
        times = torch.linspace(1, self.eps, self.steps + 1)
        for step in range(self.steps):
            share = 1 - times[step + 1] / times[step] if step < self.steps - 1 else torch.tensor(1.0)
            if self.alg == "origin":
                self._by_chance(model, writer, step, float(share), generators)
            else:
                self._by_rank(model, writer, step, share, generators)
            yield step + 1, self.steps

    def _by_chance(
        self, model, writer: CanvasWriter, step: int, share: float, generators: list[torch.Generator]
    ) -> None:
        """Each hole is committed with the chance ``share``."""
        (held,) = writer.read(writer.hidden.sum(dim=1))
        if not any(held):
            return
        chances = self._chances(held, generators, writer.ids.device)
        chosen = scatter(writer.hidden, chances < share)
        (counts,) = writer.read(chosen.sum(dim=1))
        rows = [row for row, count in enumerate(counts) if count]
        if rows:
            active = upload(rows, writer.ids.device)
            drawn = self._draw(model, writer, active, chosen[active], [counts[row] for row in rows], generators, rows)
            _commit(writer, active, chosen[active], chosen[active], drawn, step)

    def _by_rank(
        self, model, writer: CanvasWriter, step: int, share: Tensor, generators: list[torch.Generator]
    ) -> None:
        """The best holes are committed."""
        (held,) = writer.read(writer.hidden.sum(dim=1))
        wanted = [int(count * share) for count in held]
        rows = [row for row, count in enumerate(wanted) if count]
        if not rows:
            return
        active, counts = upload(rows, writer.ids.device), [held[row] for row in rows]
        holes = writer.hidden[active]
        drawn = self._draw(model, writer, active, holes, counts, generators, rows)
        ranks = self._ranks(drawn)
        if self.alg_temp:
            # The best of what Gumbel noise is added to are those that would be drawn one after the other.
            noise = -uniforms(counts, [generators[row] for row in rows], ranks.device).log()
            ranks = (ranks.double() / self.alg_temp - noise.log()).float()
        k = upload([wanted[row] for row in rows], writer.ids.device)
        _commit(writer, active, holes, most_confident(ranks, holes, k), drawn, step)

    def _draw(
        self,
        model,
        writer: CanvasWriter,
        active: Tensor,
        holes: Tensor,
        counts: list[int],
        generators: list[torch.Generator],
        rows: list[int],
    ) -> Drawn:
        return writer.draw(
            model,
            active,
            holes,
            counts,
            self.temperature,
            [generators[row] for row in rows],
            entropy=self.alg == "entropy",
            margin=self.alg == "topk_margin",
            truncation=self.truncation,
        )

    def _ranks(self, drawn: Drawn) -> Tensor:
        """What the holes ``[n]`` are ranked by, the highest first."""
        if self.alg == "maskgit_plus":
            return drawn.logps if drawn.doubt is None else -drawn.doubt
        found = drawn.entropy if self.alg == "entropy" else drawn.margin
        assert found is not None, f"the model does not return what alg={self.alg!r} ranks by: set alg='maskgit_plus'"
        return -found if self.alg == "entropy" else found

    def _chances(self, held: list[int], generators: list[torch.Generator], device: torch.device) -> Tensor:
        """One uniform number for each hole, row-major."""
        return uniforms(held, generators, device)


def _commit(writer: CanvasWriter, rows: Tensor, holes: Tensor, chosen: Tensor, drawn: Drawn, step: int) -> None:
    """Writes what was drawn for ``holes`` where it is ``chosen``; a drawn mask id stays a hole."""
    tokens = scatter(holes, drawn.tokens)
    writer.write(rows, chosen, tokens, scatter(holes, drawn.sampling_logps), step)
    if writer.policy.mask_token_id is not None:
        writer.hidden[rows] |= chosen & (tokens == writer.policy.mask_token_id)
