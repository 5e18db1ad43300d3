"""The public code's samplers, number for number: what the goldens and comparisons are decoded with. No recipe uses them.

They repeat the public code's random numbers, so that all rows of a batch draw from one generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..models.base import DiffusionPolicy
from ..models.forward import combine_guidance
from ..types import Canvas, Rollout
from .answers import Answers
from .base import CanvasWriter, Drawn, Stepwise, Truncated, check_streams, scatter, signed_guidance
from .dream import Dream
from .joint import begin_on_one_canvas
from .maskgit import MaskGIT, gumbel
from .parallel import ask_together, on_one_clock, picture_times
from .semi_autoregressive import BlockWriter, SemiAutoregressive


def check_one_stream(generators: list[torch.Generator]) -> None:
    """Raises ``ValueError`` unless the generators of all rows are the same object."""
    if any(stream is not generators[0] for stream in generators):
        raise ValueError("the public code draws all rows from one generator: give the same one for every row")


def check_whole_law(sampler: Truncated) -> None:
    """Raises ``ValueError`` where tokens would be left out, which the public code does not do."""
    if sampler.truncation is not None:
        raise ValueError(f"{type(sampler).__name__} draws from the whole law: leave top_k, top_p and min_p unset")


class PublicTextSampler(SemiAutoregressive):
    """``generate`` and ``mmu_generate``: tokens from the whole vocabulary by Gumbel noise in fp64.

    The mask id is one of them (a position that draws it stays masked), and confidence has no temperature. At
    temperature > 0 the rows' generators must be the same object.

    Raises:
        ValueError: approximate decoding, a truncated law, or ``remasking="random"``.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole_law(self)
        shortcuts = (self.confidence_threshold, self.exit_entropy)
        if self.kv_cache != "none" or shortcuts != (None, None):
            raise ValueError("PublicTextSampler is exact: leave kv_cache, confidence_threshold and exit_entropy unset")
        if self.remasking == "random":
            raise ValueError(
                "PublicTextSampler with remasking='random' would not repeat the public code's random numbers: use "
                "remasking='low_confidence', or SemiAutoregressive"
            )

    def begin(self, policy: DiffusionPolicy, canvas: Canvas, generators: list[torch.Generator]) -> BlockWriter:
        """The same, and ``ValueError`` unless the rows' generators are the same object where tokens are drawn."""
        check_streams(generators, canvas)
        if self.temperature:
            check_one_stream(generators)
        return _PublicTextWriter(canvas, policy, self, generators)


class _PublicTextWriter(BlockWriter):
    def draw_block(
        self,
        model,
        rows: Tensor,
        holes: Tensor,
        counts: list[int],
        streams: list[torch.Generator],
        **options: Any,
    ) -> Drawn:
        """Tokens by argmax of exp(logit) / (-log u)^temperature over the whole vocabulary, u of every position drawn."""
        logits, space = self.logits(model, rows, holes, counts, None)
        end, turn = self.stops[:1], self.stops
        if self.sampler.logits_eos_inf:
            logits.index_fill_(1, end, -torch.inf)
        columns, temperature = logits.argmax(dim=1), self.sampler.temperature
        if temperature:
            shape = (*holes.shape, space.width)
            noise = torch.rand(shape, dtype=torch.float64, generator=streams[0]).to(logits.device)[holes]
            columns = (logits.double() - temperature * (-noise.log()).log()).argmax(dim=1)
        if self.sampler.confidence_eos_eot_inf:
            # The public code closes the end of the text in the logits with noise, which are the logits at temperature 0 alone.
            logits.index_fill_(1, turn[1:] if temperature else turn, -torch.inf)
        # In fp64, as there: fp32 could not tell the surest tokens of a trained model apart.
        probs = logits.double().softmax(dim=1).gather(1, columns[:, None]).squeeze(1)
        # Minus the probability ranks as the remaining mass does; subtracting it from 1 would round once more.
        return Drawn(columns, probs.log().float(), doubt=-probs)


class PublicImageSampler(MaskGIT):
    """``t2i_generate``: all draws of a step from one generator, of written positions and the whole codebook as well.

    Its temperature is 1, or 0 for the likeliest codes. The public code's noise decay is ``remask_noise_decay="compound"``;
    MMaDA-Parallel-A's ``generate_ti2ti`` has ``"linear"`` and ``remask_noise="gaussian"``.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole_law(self)

    def begin(self, policy: DiffusionPolicy, canvas: Canvas, generators: list[torch.Generator]) -> CanvasWriter:
        """The canvas, nothing written yet; raises ``ValueError`` unless the rows' generators are the same object."""
        check_one_stream(generators)
        return super().begin(policy, canvas, generators)

    def _share(self, done: float) -> float:
        if self.mask_schedule != "cosine":
            return super()._share(done)
        # The public code's fp32: two thirds of the way it hides 511 of 1024 codes, not 512.
        return float(torch.cos(torch.tensor(done, dtype=torch.float32) * math.pi * 0.5))

    def _draw(self, model, writer: CanvasWriter, rows, holes, counts, image, streams) -> tuple[Tensor, ...]:
        generator = streams[0]
        logits, space = writer.logits(model, rows, holes, counts, writer.canvas.token_space)
        probs = logits.softmax(dim=-1)
        # What torch.multinomial draws of one sample: an exponential number for every code, of written positions too.
        exponentials = torch.empty(int(image.sum()), space.width).exponential_(1, generator=generator)
        shares = probs / exponentials[holes[image].cpu()].to(probs) if self.temperature else probs
        columns = shares.argmax(dim=1)
        logps = probs.gather(1, columns[:, None]).squeeze(1).log()
        size = image.shape[0], int(image[0].sum())
        if self.remask_noise == "gaussian":
            noise = torch.randn(size, generator=generator)
        else:
            noise = gumbel(torch.zeros(size).uniform_(0, 1, generator=generator))
        return (
            scatter(holes, columns + space.start),
            scatter(holes, logps),
            scatter(holes, logps),
            scatter(image, noise.flatten().to(image.device)),
        )


class PublicLuminaSampler(PublicImageSampler):
    """Lumina-DiMOO's ``generate_image`` without its cache: for the holes alone Gumbel numbers of the whole codebook, then one each.

    Confidence has no temperature. Its noise decay is ``remask_noise_decay="constant"``, at the temperature of the tokens.
    """

    __slots__ = ()

    def _draw(self, model, writer: CanvasWriter, rows, holes, counts, image, streams) -> tuple[Tensor, ...]:
        logits, space = writer.logits(model, rows, holes, counts, writer.canvas.token_space)
        columns, noise = logits.argmax(dim=1), torch.zeros(len(logits), device=logits.device)
        if self.temperature:
            drawn = gumbel(torch.rand(logits.shape, generator=streams[0])).to(logits.device)
            columns = (logits / self.temperature + drawn).argmax(dim=1)
            noise = gumbel(torch.rand(len(logits), generator=streams[0])).to(logits.device)
        logps = logits.log_softmax(dim=1).gather(1, columns[:, None]).squeeze(1)
        return (
            scatter(holes, columns + space.start),
            scatter(holes, logps),
            scatter(
                holes, (logits / (self.temperature or 1.0)).log_softmax(dim=1).gather(1, columns[:, None]).squeeze(1)
            ),
            scatter(holes, noise),
        )


class PublicParallelTextSampler(PublicTextSampler):
    """The text of MMaDA-Parallel-A's ``generate_ti2ti``, one block: after the share u of the steps ``floor(n (1 - u))`` of n stay hidden."""

    __slots__ = ()

    def advance(self, model: Any, writer: BlockWriter, generators: list[torch.Generator]) -> Iterator[tuple[int, int]]:
        """As in ``Stepwise``."""
        whole = left = writer.masked_in(0)
        for step in range(self.steps):
            then = [int(own * (1 - (step + 1) / self.steps)) for own in whole]
            writer.reveal(model, 0, [now - later for now, later in zip(left, then, strict=True)], step, generators)
            left = then
            yield step + 1, self.steps


@torch.no_grad()
def write_as_ti2ti(
    model: Any,
    policy: DiffusionPolicy,
    canvases: Sequence[Canvas],
    samplers: Sequence[Stepwise],
    generators: Sequence[list[torch.Generator]],
) -> list[Rollout]:
    """``write_in_parallel`` in the order of MMaDA-Parallel-A's ``generate_ti2ti``: what a picture is guided away from is read after the
    step of the text, in forwards of its own, and the picture itself before it. One batch, one generator.
    """
    text, picture = on_one_clock(samplers)
    scale, times = signed_guidance(picture), picture_times(text.steps, samplers[1].steps)  # type: ignore[attr-defined]
    plain = replace(picture, guidance_scale=0.0, image_guidance_scale=0.0)
    writers = begin_on_one_canvas(policy, canvases, (text, plain), generators)
    answers = Answers(), Answers()
    turns = (
        text.advance(answers[0], writers[0], generators[0]),
        plain.advance(answers[1], writers[1], generators[1], at=times),
    )
    for step in range(text.steps):
        acting = 2 if step in times else 1
        ask_together(model, policy, writers[:acting], answers[:acting])
        next(turns[0], None)
        if acting == 2:
            own = writers[1]
            twins = policy.guidance_twins(replace(own.canvas, ids=own.ids), scale) if scale else []
            asked = {"select": policy.rows(own.hidden), "token_space": own.space}
            further = [model(**policy.inputs(twin, own.hidden), **asked).logits for twin in twins]
            if further:
                answers[1].logits = combine_guidance(torch.cat([answers[1].logits, *further]), scale)
            next(turns[1], None)
    return [own.rollout() for own in writers]


class PublicDreamSampler(Dream):
    """``diffusion_generate``: with ``alg="origin"`` one number of the shared generator for each hole of the batch, in fp32."""

    __slots__ = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole_law(self)

    def _chances(self, held: list[int], generators: list[torch.Generator], device: torch.device) -> Tensor:
        check_one_stream(generators)
        return torch.rand(sum(held), generator=generators[0]).to(device)
