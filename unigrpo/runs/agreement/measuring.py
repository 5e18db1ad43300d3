"""Exact decoding and its variants in turn, on the same rows, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from ...rollout.pipeline import Pipeline, evaluating
from ...rollout.sample import canvas_arguments, prompt_images
from ...types import Canvas, Rollout, keyed_generator
from .measures import Match, Work, counted, match, merged_stages, sampling_gap, stage_logps
from .variants import Variant


SHRINKS = (1, 2, 4, 8)
"""Steps of a rollout that one forward scores; 1 = step by step."""

SCORED_ROWS = 64
"""Log-probabilities are compared on so many rows of the first batch: scoring one costs as much as decoding it exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One way of decoding beside the exact one.

    Attributes:
        agreement: share of the exact completions' tokens that are equal, position by position.
        equal_answers: share of completions that are equal.
        accuracy: share of right answers among those with a solution; None without any.
        forwards, trunk_tokens: a completion, see ``Work``.
        seconds, speed_up: of decoding all rows; exact seconds by these.
        logp_gap: mean of ``sampling_gap``; None for a policy without a mask id.
    """

    decoding: str
    of_recipe: bool
    agreement: float
    equal_answers: float
    accuracy: float | None
    forwards: float
    trunk_tokens: float
    seconds: float
    speed_up: float
    logp_gap: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Scoring the exact rollouts with ``shrink`` steps in one forward: forwards a completion, the share of forwards saved,
    and the mean |difference| of a token's log-probability from step-by-step scoring, nats.
    """

    shrink: int
    forwards: float
    saved: float
    logp_difference: float


@dataclass(slots=True, kw_only=True)
class _Tally:
    """What adds up over the batches of one variant."""

    match: Match = field(default_factory=Match)
    work: Work = field(default_factory=Work)
    seconds: float = 0.0
    right: list[bool] = field(default_factory=list)
    gap: float | None = None


class Measurement:
    """All variants on the rows of one task.

    Args:
        variants: the first is exact decoding.
        judge: ``accuracy(completion, solution)``; None where a task has no measure.
        advance: called after each rollout and each scoring; ``calls`` times in all.
    """

    def __init__(
        self,
        pipe: Pipeline,
        task: str,
        rows: list[dict[str, Any]],
        variants: list[Variant],
        judge: Callable | None,
        advance: Callable[[], None],
    ) -> None:
        self.pipe, self.task, self.rows, self.variants = pipe, task, rows, variants
        self.judge, self.advance = judge, advance
        self.tallies = [_Tally() for _ in variants]
        self.merged: list[Merged] = []

    @property
    def batch_size(self) -> int:
        return self.pipe.args.rollout_batch_size or self.pipe.args.per_device_eval_batch_size

    @property
    def scores(self) -> bool:
        """Whether log-probabilities can be compared: without a mask id, nobody knows what the holes held."""
        return self.pipe.policy.mask_token_id is not None

    @property
    def calls(self) -> int:
        batches = -(-len(self.rows) // self.batch_size)
        return len(self.variants) * (batches + self.scores) + self.scores * len(SHRINKS)

    def run(self) -> dict[str, Any]:
        """Everything measured, as JSON values."""
        with evaluating(self.pipe.model):
            for start in range(0, len(self.rows), self.batch_size):
                self._batch(start)
        exact = self.tallies[0]
        lines = [self._line(variant, own, exact) for variant, own in zip(self.variants, self.tallies, strict=True)]
        return {
            "completions": exact.match.rows,
            "tokens": exact.match.tokens,
            "decoding": [asdict(line) for line in lines],
            "merged_steps": [asdict(line) for line in self.merged],
        }

    def _batch(self, start: int) -> None:
        rows = self.rows[start : start + self.batch_size]
        canvas = self._canvas(rows)
        if start == 0:
            # What a first call sets up would be counted against exact decoding.
            self._roll_out(self.variants[0], canvas.take(torch.tensor([0])), start)
        rollouts: dict[int, Rollout] = {}
        for place in _rotated(len(self.variants), start // self.batch_size):
            rollouts[place] = self._timed(place, canvas, start)
            self.advance()
        for place, tally in enumerate(self.tallies):
            tally.match += match(rollouts[0], rollouts[place])
            tally.right += self._judged(rows, rollouts[place])
        if start == 0 and self.scores:
            first = torch.arange(min(len(rows), SCORED_ROWS))
            self._measure_gaps(canvas.take(first))
            self._merge_steps(rollouts[0].take(first))

    def _canvas(self, rows: list[dict[str, Any]]) -> Canvas:
        pipe = self.pipe
        coded, _ = prompt_images(pipe.policy, pipe.args, pipe.codec, rows, self.task)
        arguments = canvas_arguments(pipe.args, pipe.policy, pipe.codec, self.task)
        return pipe.policy.encode(coded, self.task, **arguments).to(pipe.device)

    def _roll_out(self, variant: Variant, canvas: Canvas, start: int, **changes: Any) -> Rollout:
        """The rows' random numbers are those of their place in the data, whatever the variant."""
        pipe = self.pipe
        streams = [keyed_generator("agreement", pipe.args.seed, start + row) for row in range(len(canvas.ids))]
        sampler = replace(variant.sampler, **changes)
        return sampler(pipe.model, pipe.policy, canvas, generators=streams)

    def _timed(self, place: int, canvas: Canvas, start: int) -> Rollout:
        tally = self.tallies[place]
        with counted(self.pipe.model) as work:
            began = self._clock()
            rollout = self._roll_out(self.variants[place], canvas, start)
            tally.seconds += self._clock() - began
        tally.work.forwards += work.forwards
        tally.work.trunk_tokens += work.trunk_tokens
        return rollout

    def _clock(self) -> float:
        if torch.device(self.pipe.device).type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def _judged(self, rows: list[dict[str, Any]], rollout: Rollout) -> list[bool]:
        pairs = zip(rows, rollout.completions, strict=True)
        if self.judge is None:
            return []
        return [bool(self.judge(text, row["solution"])) for row, text in pairs if row.get("solution") is not None]

    def _measure_gaps(self, canvas: Canvas) -> None:
        """Decodes to the end, because a tail that became padding has lost what the model saw there."""
        for variant, tally in zip(self.variants, self.tallies, strict=True):
            rollout = self._roll_out(variant, canvas, 0, stop="never")
            tally.gap = sampling_gap(self.pipe.model, self.pipe.policy, rollout, variant.sampler).mean().item()
            self.advance()

    def _merge_steps(self, exact: Rollout) -> None:
        scored = []
        for shrink in SHRINKS:
            stages = merged_stages(self.pipe.policy, exact, shrink)
            logps = stage_logps(self.pipe.model, self.pipe.policy, exact, stages, self.variants[0].sampler)
            scored.append((shrink, stages.forwards, logps))
            self.advance()
        _, whole, one_by_one = scored[0]
        self.merged = [
            Merged(
                shrink=shrink,
                forwards=forwards / len(exact.completions),
                saved=1 - forwards / whole,
                logp_difference=(logps - one_by_one).abs().mean().item(),
            )
            for shrink, forwards, logps in scored
        ]

    def _line(self, variant: Variant, own: _Tally, exact: _Tally) -> Line:
        return Line(
            decoding=variant.name,
            of_recipe=variant.of_recipe,
            agreement=own.match.equal_tokens / max(own.match.tokens, 1),
            equal_answers=own.match.equal_rows / own.match.rows,
            accuracy=sum(own.right) / len(own.right) if own.right else None,
            forwards=own.work.forwards / own.match.rows,
            trunk_tokens=own.work.trunk_tokens / own.match.rows,
            seconds=own.seconds,
            speed_up=exact.seconds / own.seconds,
            logp_gap=own.gap,
        )


def _rotated(count: int, by: int) -> list[int]:
    """0..count-1 from another start in every batch, so that no variant always runs first."""
    return [(place + by) % count for place in range(count)]
