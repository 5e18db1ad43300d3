"""DiffusionGemma's sampler: a canvas of random tokens, of which what is sure stays and the rest is drawn anew at each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..models.base import DiffusionPolicy
from ..models.draw import Draw, choose_tokens
from ..models.gemma.prefix import PrefixKeys
from ..models.placing import upload
from ..parts import MOST_STEPS, check_keys, key
from ..types import Canvas
from .base import CanvasWriter, Stepwise, check_streams, uniforms
from .block import within_bound


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyBound(Stepwise):
    """``generate`` of DiffusionGemma: canvas after canvas, for policies whose model denoises random tokens behind a prefix.

    A step draws a token for every position of the canvas. Those of least entropy are kept, as long as the entropies of the ones
    before them sum to at most ``entropy_bound`` (arXiv 2505.24857); all others become fresh random tokens. The model reads its own
    logits of the step before. A row's canvas is finished when its likeliest tokens have not changed for ``stability_threshold`` steps and their
    mean entropy is below ``finish_entropy``, or after ``steps``. What is written are the likeliest tokens of its last step.

    ``sampling_logps`` are those tokens' log-probabilities in that step: no draw, so that they say how sure it was, not how likely
    the answer. At ``temperature`` 0 a step takes the likeliest tokens; what is not kept is random all the same.

    Raises:
        ValueError: a policy with a mask id, an answer that is no whole number of canvases, or answers that do not begin in one column.
    """

    tasks: ClassVar[tuple[str, ...]] = ("text",)

    steps: int = key(48, "denoising steps of a canvas, at most", at_least=1, at_most=MOST_STEPS)
    temperature: float = key(1.0, "divides the logits beside the schedule from t_max to t_min; 0 = argmax", at_least=0)
    t_min: float = key(0.4, "the schedule's temperature at the last step", above=0)
    t_max: float = key(0.8, "the schedule's temperature before the first step", above=0)
    entropy_bound: float = key(0.1, "nats that the tokens kept in one step may share; more is faster", at_least=0)
    stability_threshold: int = key(1, "steps without a change before a canvas may be finished", at_least=0)
    finish_entropy: float = key(0.005, "mean entropy in nats below which a canvas may be finished", above=0)

    def __post_init__(self) -> None:
        check_keys(self)

    def begin(self, policy: DiffusionPolicy, canvas: Canvas, generators: list[torch.Generator]) -> CanvasWriter:
        """The canvas, random tokens at its holes."""
        check_streams(generators, canvas)
        self.check_policy(policy, int(canvas.fill_mask[0].sum()))
        if bool((canvas.fill_mask != canvas.fill_mask[:1]).any()):
            raise ValueError("sampler='entropy_bound' needs answers that begin in one column: pad prompts on the left")
        return CanvasWriter(canvas, policy, 0.0, generators)

    def check_policy(
        self, policy: DiffusionPolicy, length: int = 0, where: str = "", steps_key: str = "steps"
    ) -> None:
        """As in ``Stepwise``."""
        if policy.mask_token_id is not None or policy.block_size is None:
            raise ValueError(
                f"{where}sampler='entropy_bound' draws random tokens anew, and {type(policy).__name__} writes at a mask id: choose "
                "another sampler"
            )
        if length % policy.block_size:
            raise ValueError(
                f"{where}max_completion_length={length}: the model writes whole canvases; give a multiple of {policy.block_size}"
            )

    def advance(
        self, model: Any, writer: CanvasWriter, generators: list[torch.Generator]
    ) -> Iterator[tuple[int, int]]:
        """As in ``Stepwise``."""
        size = writer.policy.block_size
        assert size is not None
        columns = writer.canvas.fill_mask[0].nonzero().squeeze(1).tolist()
        canvases = [(own[0], own[-1] + 1) for own in (columns[at : at + size] for at in range(0, len(columns), size))]
        for number, (start, stop) in enumerate(canvases):
            (held,) = writer.read(writer.hidden[:, start:stop].sum(dim=1))
            rows = [row for row, count in enumerate(held) if count]
            if not rows:
                return
            denoised = Denoised(self, writer, start, stop, rows)
            for step in range(self.steps):
                if denoised.rows:
                    denoised.step(model, step, generators, number * self.steps + step)
                yield number * self.steps + step + 1, len(canvases) * self.steps

    def temperature_at(self, step: int) -> float:
        """The schedule's temperature: linear in the steps that remain."""
        return self.t_min + (self.t_max - self.t_min) * (self.steps - step) / self.steps


class Denoised:
    """One canvas of some rows while it is denoised.

    Attributes:
        rows: the rows that are not finished.
    """

    def __init__(self, sampler: EntropyBound, writer: CanvasWriter, start: int, stop: int, rows: list[int]) -> None:
        self.sampler, self.writer, self.rows = sampler, writer, rows
        self.columns, self.keys = slice(start, stop), PrefixKeys(start, stop)
        self.logits: Tensor | None = None
        self.likeliest = torch.full((len(rows), stop - start), -1, device=writer.ids.device)
        self.unchanged = torch.zeros(len(rows), dtype=torch.int64, device=writer.ids.device)

    def step(self, model: Any, step: int, generators: list[torch.Generator], done: int) -> None:
        """One forward of the rows that are left; those that are finished are written and leave."""
        writer, sampler, streams = self.writer, self.sampler, [generators[row] for row in self.rows]
        active = upload(self.rows, writer.ids.device)
        self.logits = self._logits(model, active) / sampler.temperature_at(step)
        rows, length = self.logits.shape[:2]
        scaled = self.logits.flatten(0, 1) / (sampler.temperature or 1.0)
        chances = uniforms([length] * rows, streams, writer.ids.device) if sampler.temperature else None
        tokens = choose_tokens(scaled, Draw(uniforms=chances, truncation=sampler.truncation)).tokens
        best = choose_tokens(scaled, Draw(entropy=True))
        assert tokens is not None and best.tokens is not None and best.entropy is not None, "as asked"
        first, shape = writer.space.start, (rows, length)
        tokens, likeliest = (tokens + first).view(shape), (best.tokens + first).view(shape)
        entropy, logps = best.entropy.view(shape), best.logps.view(shape)
        kept = within_bound(entropy, torch.ones_like(entropy, dtype=torch.bool), sampler.entropy_bound)
        fresh = torch.cat([writer.space.draw(length, generator=own) for own in streams]).view(rows, length)
        writer.ids[active, self.columns] = torch.where(kept, tokens, fresh.to(tokens))
        self.unchanged = torch.where((likeliest == self.likeliest).all(dim=1), self.unchanged + 1, 0)
        self.likeliest = likeliest
        sure = entropy.mean(dim=1) < sampler.finish_entropy
        over = (self.unchanged >= sampler.stability_threshold) & sure | (step == sampler.steps - 1)
        self._finish(active, over, logps, done)

    def _logits(self, model: Any, active: Tensor) -> Tensor:
        """fp32 logits ``[b, m, W]`` of the canvas over the token space."""
        writer, places = self.writer, torch.zeros_like(self.writer.hidden[active])
        places[:, self.columns] = True
        request = writer.request(active, places, [self.likeliest.shape[1]] * len(places))
        output = model(**request, token_space=writer.space, cache=self.keys, self_conditioning_logits=self.logits)
        return output.logits.view(len(places), -1, writer.space.width)

    def _finish(self, active: Tensor, over: Tensor, logps: Tensor, done: int) -> None:
        """Writes the likeliest tokens of the rows that are ``over [b]``, and goes on without them."""
        writer = self.writer
        (finished,) = writer.read(over)
        if not any(finished):
            return
        places, tokens, known = torch.zeros_like(writer.hidden[active]), writer.ids[active], writer.logps[active]
        places[:, self.columns] = over[:, None]
        tokens[:, self.columns], known[:, self.columns] = self.likeliest, logps
        writer.write(active, places, tokens, known, done)
        stay = [place for place, own in enumerate(finished) if not own]
        index = upload(stay, writer.ids.device, torch.int64)
        self.rows = [self.rows[place] for place in stay]
        assert self.logits is not None, "a step was taken"
        self.likeliest, self.unchanged, self.logits = self.likeliest[index], self.unchanged[index], self.logits[index]
        self.keys.take(stay)
