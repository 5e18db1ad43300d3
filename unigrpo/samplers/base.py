"""What all samplers share: the canvas while it is being written, and the model's logits for its holes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models.base import DiffusionPolicy
from ..models.draw import Draw, Truncation
from ..models.placing import upload
from ..parts import key
from ..types import Canvas, Guidance, Rollout, TokenSpace
from .answers import Answers


TEMPERATURE = """0 = argmax, else tokens are drawn from softmax(logits / temperature); likelihoods use the same"""
DRAWN = ("temperature is above 0", lambda settings: settings.temperature > 0)
"""When a sampler draws tokens at all."""

GUIDANCE = "s of classifier-free guidance, logits u + (s + 1)(c - u) in fp32; 0 = off"

IMAGE_GUIDANCE = (
    "the same of the prompt's picture in edits: s' (c - u') is added, u' the row without that picture; 0 = off"
)


def signed_guidance(settings: Any) -> Guidance:
    """s of logits u + (s + 1)(c - u), from the keys of a sampler or a task; negative where guidance leads away from the prompt. A pair
    where ``image_guidance_scale`` is set.
    """
    scale, of_image = (getattr(settings, name, 0.0) for name in ("guidance_scale", "image_guidance_scale"))
    scale = -scale if getattr(settings, "guidance_direction", "toward") == "away" else scale
    return (scale, of_image) if of_image else scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncated:
    """The keys of a sampler that may leave out unlikely tokens. They change what is drawn, not how tokens are ranked."""

    top_k: int = key(
        0, "only the k likeliest tokens are drawn, 0 = all; likelihoods keep the whole law", at_least=0, read_if=DRAWN
    )
    top_p: float = key(
        1.0,
        "only the fewest likeliest tokens that hold this share of the mass are drawn, 1 = all; likelihoods keep the whole law",
        above=0,
        at_most=1,
        read_if=DRAWN,
    )
    min_p: float | None = key(
        None,
        "only tokens at least this many times as likely as the likeliest are drawn, none = all; likelihoods keep the whole law",
        at_least=0,
        at_most=1,
        read_if=DRAWN,
    )

    @property
    def truncation(self) -> Truncation | None:
        """What ``CanvasWriter.draw`` is told; None where every token may be drawn."""
        own = Truncation(top_k=self.top_k, top_p=self.top_p, min_p=self.min_p or 0.0)
        return None if own == Truncation() else own


def warn_of_blocks(name: str, policy: DiffusionPolicy) -> None:
    """Warns that sampler ``name`` writes tokens against masks in earlier blocks."""
    better = "entropy_bound" if policy.mask_token_id is None else "block"
    warnings.warn(
        f"sampler={name!r} writes a token while earlier blocks of {type(policy).__name__} have holes, and its likelihood sees them "
        f"whole: set sampler={better!r}"
    )


class Stepwise(Truncated):
    """A sampler whose steps can be taken one at a time, so that two of them can write on one canvas in turn."""

    __slots__ = ()

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        policy: DiffusionPolicy,
        canvas: Canvas,
        *,
        on_step: Callable[[int, int], None] | None = None,
        generators: list[torch.Generator],
    ) -> Rollout:
        """Fill ``canvas``.

        Args:
            model: the module (wrapped or not), in eval mode.
            policy: its description.
            canvas: B rows of one task.
            on_step: called as ``on_step(done, total)`` after each step.
            generators: one CPU generator a row; a row's result does not depend on its neighbours.

        Raises:
            ValueError: as ``begin`` and ``advance``, or a generator count other than B.
        """
        writer = self.begin(policy, canvas, generators)
        for done, total in self.advance(model, writer, generators):
            if on_step is not None:
                on_step(done, total)
        return writer.rollout()

    def check_policy(
        self, policy: DiffusionPolicy, length: int = 0, where: str = "", steps_key: str = "steps"
    ) -> None:
        """Raises ``ValueError`` for a policy whose answers of ``length`` this cannot write, and warns of one that it suits badly.

        ``where`` prefixes the key, ``steps_key`` is the name under which the steps were set.
        """

    def begin(self, policy: DiffusionPolicy, canvas: Canvas, generators: list[torch.Generator]) -> Any:
        """The ``CanvasWriter`` of ``canvas``, nothing written yet."""
        check_streams(generators, canvas)
        return CanvasWriter(canvas, policy, signed_guidance(self), generators)

    def advance(self, model: Any, writer: Any, generators: list[torch.Generator]) -> Iterator[tuple[int, int]]:
        """Take the steps, one for each time that this is asked; gives the steps done and their total."""
        raise NotImplementedError


class Drawn(NamedTuple):
    """Tokens ``[n]`` that were drawn, and what the model says of them: as in ``TokenScores``, ``entropy`` and ``margin`` where asked for."""

    tokens: Tensor
    logps: Tensor
    entropy: Tensor | None = None
    doubt: Tensor | None = None
    kept: Tensor | None = None
    margin: Tensor | None = None

    @property
    def sampling_logps(self) -> Tensor:
        """Log-probabilities ``[n]`` under the law that the tokens were drawn from."""
        return self.logps if self.kept is None else self.logps - self.kept


class CanvasWriter:
    """A canvas with holes, and the owner of stop tokens.

    What counts of a row ends with its first stop token. With ``stop="first"`` the tail behind it becomes padding as soon as the
    token is written, and is not denoised any more.

    Without a mask id, holes hold uniformly random tokens of the token space. Each row draws its own from its stream,
    before anything else, and they stay until they are written over.

    Attributes:
        ids, hidden: ``[B, L]``, the canvas so far and its holes.
        step_map, logps: ``[B, L]``, as in ``Rollout``.
        space: what is drawn from, the canvas's token space.
        twins: what guidance steers away from; none without.
        padded: whether any row has padding, or a twin.
        lost_at: ``[B]``, the step at which a row's logits were no distribution, -1 while they are.
    """

    def __init__(
        self,
        canvas: Canvas,
        policy: DiffusionPolicy,
        guidance_scale: Guidance,
        streams: list[torch.Generator],
        stop: str = "first",
    ) -> None:
        self.stop, space = stop, canvas.token_space
        # Ids that the task cannot write end nothing: a picture has no stop token.
        ends = [
            token
            for token in policy.stop_token_ids
            if space.start <= token < space.stop and token not in space.exclude
        ]
        self.stops = upload(ends, canvas.ids.device, torch.int64)
        self.canvas, self.policy, self.guidance_scale = canvas, policy, guidance_scale
        self.space = space
        self.ids, self.hidden = canvas.ids.clone(), canvas.fill_mask.clone()
        if policy.mask_token_id is None:
            counts = self.hidden.sum(dim=1).tolist()
            noise = [canvas.token_space.draw(n, generator=own) for n, own in zip(counts, streams, strict=True)]
            self.ids.masked_scatter_(self.hidden, torch.cat(noise).to(self.ids))
        self.step_map = torch.full_like(canvas.ids, -1)
        self.lost_at = torch.full((len(canvas.ids),), -1, device=canvas.ids.device)
        self.logps = torch.zeros(canvas.ids.shape, dtype=torch.float32, device=canvas.ids.device)
        self.twins = policy.guidance_twins(canvas, guidance_scale) if guidance_scale else []
        self.padded = not all(bool(own.attention_mask.all()) for own in (canvas, *self.twins))

    def read(self, *numbers: Tensor) -> list[list[int]]:
        """The integers ``[m]`` of each of ``numbers``, in the one wait for the device that a step needs.

        Raises:
            ValueError: a token was drawn without a log-probability, because the model's logits are no distribution.
        """
        sizes = [len(self.lost_at), *(len(own) for own in numbers)]
        packed = torch.cat([self.lost_at, *(own.to(self.lost_at.dtype) for own in numbers)]).tolist()
        parts, start = [], 0
        for size in sizes:
            parts.append(packed[start : start + size])
            start += size
        lost = [(row, step) for row, step in enumerate(parts[0]) if step >= 0]
        if lost:
            row, step = lost[0]
            raise ValueError(
                f"no token can be drawn for row {row} at step {step}: its logits hold NaN or +inf, or -inf alone. Look at the "
                "model's weights and precision; with guidance close tokens with a finite number, not -inf"
            )
        return parts[1:]

    def logits(
        self, model, rows: Tensor, holes: Tensor, counts: list[int], space: TokenSpace | None
    ) -> tuple[Tensor, TokenSpace]:
        """fp32 logits ``[n, W]`` of ``holes [b, L]`` in ``rows [b]``, row-major, guided, and the space of their columns."""
        logits = self.ask(model, rows, holes, counts, token_space=space).logits
        return logits, space or TokenSpace(start=0, stop=logits.shape[1])

    def draw(
        self,
        model,
        rows: Tensor,
        holes: Tensor,
        counts: list[int],
        temperature: float,
        streams: list[torch.Generator],
        *,
        entropy: bool = False,
        truncation: Truncation | None = None,
        margin: bool = False,
        **options: Any,
    ) -> Drawn:
        """A token for each of the n ``holes [b, L]`` in ``rows [b]``, row-major; temperature 0 = argmax.

        ``counts`` are the holes of each row, ``entropy``, ``truncation`` and ``margin`` as in ``Draw``; ``options`` are further arguments of the forward.
        """
        chances = uniforms(counts, streams, self.ids.device) if temperature else None
        output = self.ask(
            model,
            rows,
            holes,
            counts,
            token_space=self.space,
            temperature=temperature or 1.0,
            draw=Draw(uniforms=chances, entropy=entropy, truncation=truncation, margin=margin),
            **options,
        )
        further = (getattr(output, name, None) for name in ("kept", "margin"))
        return Drawn(output.tokens, output.logps, output.entropy, output.doubt, *further)

    def ask(self, model: Any, rows: Tensor, holes: Tensor, counts: list[int], **asked: Any) -> Any:
        """What ``model`` says of ``holes [b, L]`` in ``rows [b]``, or what a forward that others share has said already."""
        if isinstance(model, Answers):
            return model(rows, holes, **asked)
        return model(**self.request(rows, holes, counts), **asked)

    def request(self, rows: Tensor, holes: Tensor, counts: list[int]) -> dict[str, Any]:
        """Inputs, selected rows and guidance of a forward."""
        canvas, hidden = replace(self.canvas, ids=self.ids).take(rows), self.hidden[rows]
        select = self.policy.rows(holes)
        if not self.twins:
            inputs = self.policy.inputs(canvas, hidden)
        else:
            inputs = self.policy.guided_inputs(canvas, hidden, twins=[twin.take(rows) for twin in self.twins])
            select, counts = torch.cat([select] * (1 + len(self.twins))), counts * (1 + len(self.twins))
        if not self.padded and self.policy.mask_optional:
            inputs["attention_mask"] = None
        guidance = self.guidance_scale if self.twins else None
        return {**inputs, "select": select, "counts": counts, "guidance_scale": guidance}

    def write(self, rows: Tensor, places: Tensor, tokens: Tensor, logps: Tensor, step: int) -> None:
        """Commit ``tokens`` where ``places`` is True, all ``[b, L]``, in ``rows [b]``."""
        known = self.lost_at[rows]
        lost = (logps.isnan() & places).any(dim=1) & (known < 0)
        self.lost_at[rows] = torch.where(lost, step, known)
        self.ids[rows] = torch.where(places, tokens, self.ids[rows])
        self.logps[rows] = torch.where(places, logps, self.logps[rows])
        self.step_map[rows] = self.step_map[rows].masked_fill(places, step)
        self.hidden[rows] &= ~places
        if self.stop == "first" and len(self.stops):
            self._fill_tail()

    def is_stop(self) -> Tensor:
        """``[B, L]`` bool, the stop tokens that were written."""
        return torch.isin(self.ids, self.stops) & self.canvas.fill_mask & ~self.hidden

    def _fill_tail(self, rows: Tensor | None = None) -> None:
        """Nothing after a row's first stop token counts, so it becomes padding and costs no more steps; of ``rows [b]``, None = all."""
        is_stop = self.is_stop()
        tail = (is_stop.cumsum(1) - is_stop.long() > 0) & self.canvas.fill_mask
        if rows is not None:
            tail &= torch.zeros_like(tail).index_fill(0, rows, True)
        self.ids.masked_fill_(tail, self.policy.pad_token_id)
        self.step_map.masked_fill_(tail, -1)
        self.logps.masked_fill_(tail, 0.0)
        self.hidden &= ~tail

    def counts(self) -> Tensor:
        """The written tokens that count: up to and including the first stop token."""
        written = self.canvas.fill_mask & ~self.hidden
        if not len(self.stops):
            return written
        is_stop = self.is_stop().long()
        return written & (is_stop.cumsum(1) - is_stop == 0)

    def rollout(self) -> Rollout:
        """What was written, decoded.

        Raises:
            ValueError: as ``read``.
        """
        self.read()
        canvas, counts = replace(self.canvas, ids=self.ids), self.counts()
        return Rollout(
            canvas=canvas,
            completion_mask=counts,
            step_map=self.step_map,
            sampling_logps=self.logps,
            completions=self.policy.decode(canvas, counts),
        )


def check_streams(generators: list[torch.Generator], canvas: Canvas) -> None:
    """Raises ``ValueError`` unless there is one generator a row."""
    if len(generators) != len(canvas.ids):
        raise ValueError(f"{len(generators)} generators for {len(canvas.ids)} rows; give one a row")


def uniforms(counts: list[int], streams: list[torch.Generator], device: torch.device | str) -> Tensor:
    """One fp64 uniform for each of the ``counts`` holes of a row, row-major ``[n]``; each row draws from its own stream."""
    draws = [
        torch.rand(count, dtype=torch.float64, generator=stream) for count, stream in zip(counts, streams, strict=True)
    ]
    return upload(torch.cat(draws), device)


def scatter(holes: Tensor, values: Tensor) -> Tensor:
    """``values [n]`` at the True positions of ``holes [b, L]``, 0 elsewhere."""
    return torch.zeros(holes.shape, dtype=values.dtype, device=values.device).masked_scatter(holes, values)
