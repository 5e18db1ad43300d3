"""What is measured: two rollouts of the same canvases, and log-probabilities of one trajectory scored in other ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...algorithm.likelihood import score_tokens
from ...algorithm.noising import TrajectoryNoising
from ...models.base import DiffusionPolicy
from ...samplers import SemiAutoregressive
from ...samplers.base import signed_guidance
from ...types import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Counts over rows: ``tokens`` of the exact completions and how many are equal, position by position; ``rows`` and
    how many have an equal completion, of equal length.
    """

    tokens: int = 0
    equal_tokens: int = 0
    rows: int = 0
    equal_rows: int = 0

    def __add__(self, other: Match) -> Match:
        return Match(
            tokens=self.tokens + other.tokens,
            equal_tokens=self.equal_tokens + other.equal_tokens,
            rows=self.rows + other.rows,
            equal_rows=self.equal_rows + other.equal_rows,
        )


def match(exact: Rollout, other: Rollout) -> Match:
    """How far ``other`` wrote what ``exact`` wrote. Both are of the same canvases, row by row."""
    counted, equal = exact.completion_mask, exact.canvas.ids == other.canvas.ids
    same = (equal | ~counted).all(dim=1) & (counted == other.completion_mask).all(dim=1)
    return Match(
        tokens=int(counted.sum()),
        equal_tokens=int((equal & counted).sum()),
        rows=len(counted),
        equal_rows=int(same.sum()),
    )


@dataclass(slots=True, kw_only=True)
class Work:
    """Forwards of single rows (a guided one is two), and positions that went through the transformer."""

    forwards: int = 0
    trunk_tokens: int = 0


@contextmanager
def counted(model: nn.Module) -> Iterator[Work]:
    """Counts what ``model`` computes within the block; with kept keys and values, the columns of the span alone."""
    work = Work()

    def count(module: nn.Module, args: tuple, inputs: dict) -> None:
        rows, length = _main_input(module, args, inputs).shape[:2]
        span = getattr(inputs.get("cache"), "span", None)
        work.forwards += rows
        work.trunk_tokens += rows * (length if span is None else span[1] - span[0])

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield work
    finally:
        handle.remove()


def _main_input(model: nn.Module, args: tuple, inputs: dict) -> Tensor:
    """The ``[B, L, ...]`` input that ``main_input_name`` names, or the first tensor that is given."""
    named = inputs.get(getattr(model, "main_input_name", None))
    return named if named is not None else next(own for own in (*args, *inputs.values()) if isinstance(own, Tensor))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Masks ``[B, S, L]``: what is hidden in each stage of a trajectory, and what is scored."""

    hidden: Bool[Tensor, "B S L"]
    target: Bool[Tensor, "B S L"]

    @property
    def forwards(self) -> int:
        """Forwards of single rows that scoring takes."""
        return int(self.target.any(dim=2).sum())


def written_stages(rollout: Rollout) -> Stages:
    """The holes that the sampler saw at each step, and the tokens of the completion which it wrote then.

    ``rollout`` must be sampled with ``stop="never"``: otherwise a row's tail becomes padding, and what had been written
    there before the stop token is not known any more.
    """
    steps = rollout.step_map[rollout.completion_mask].unique()[None, :, None]
    step_map = rollout.step_map[:, None]
    return Stages(
        hidden=rollout.canvas.fill_mask[:, None] & (step_map >= steps),
        target=rollout.completion_mask[:, None] & (step_map == steps),
    )


def merged_stages(policy: DiffusionPolicy, rollout: Rollout, shrink: int) -> Stages:
    """The stages of ``TrajectoryNoising`` with ``shrink`` steps merged into one (TraceRL, arXiv 2509.06949).

    Of a policy in blocks, those of all its blocks at once.
    """
    rows = list(range(len(rollout.step_map)))
    noise = TrajectoryNoising(trajectory_shrink=shrink)(
        rollout, num_iterations=1, num_samples=0, key=(0, 0), rows=rows, blocks=policy.blocks(rollout.canvas)
    )
    return Stages(hidden=noise.hidden[:, 0], target=noise.target[:, 0])


@torch.no_grad()
def stage_logps(
    model: nn.Module, policy: DiffusionPolicy, rollout: Rollout, stages: Stages, sampler: SemiAutoregressive
) -> Float[Tensor, " n"]:
    """Log-probabilities (nats) of the n tokens of the completions, row-major, by one exact forward a row and stage.

    Temperature and guidance are the sampler's, as when the tokens were drawn.
    """
    logps = torch.zeros_like(rollout.sampling_logps)
    for hidden, target in zip(stages.hidden.unbind(dim=1), stages.target.unbind(dim=1), strict=True):
        rows = target.any(dim=1).nonzero().squeeze(1)
        logps[rows] += score_tokens(
            model,
            policy,
            rollout.canvas.take(rows),
            hidden[rows],
            target[rows],
            temperature=sampler.temperature or 1.0,
            guidance_scale=signed_guidance(sampler) or None,
        ).logps
    return logps[rollout.completion_mask]


def sampling_gap(
    model: nn.Module, policy: DiffusionPolicy, rollout: Rollout, sampler: SemiAutoregressive
) -> Float[Tensor, " n"]:
    """|log p when a token was drawn - log p by an exact forward on the same holes|, nats; rollouts as ``written_stages``.

    What a trainer does not see when it takes the sampler's log-probabilities for those of the policy.
    """
    scored = stage_logps(model, policy, rollout, written_stages(rollout), sampler)
    return (rollout.sampling_logps[rollout.completion_mask] - scored).abs()
