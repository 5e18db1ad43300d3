"""Masks that follow an order of writing: the rollout's own, left to right, or block after block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from ...parts import key
from ...types import keyed_generator
from .base import Answer, Draw, Key, Noising, independent_subset, random_subset


def merged_steps(step_map: Int[Tensor, " n"], shrink: int) -> Int[Tensor, " n"]:
    """Steps renumbered 0, 1, ... with ``shrink`` consecutive ones merged; steps that wrote nothing do not count."""
    _, rank = step_map.unique(sorted=True, return_inverse=True)
    return rank // shrink


def chosen_stages(count: int, num_samples: int, *, generator: torch.Generator) -> list[int]:
    """All ``count`` stages for ``num_samples`` = 0, else that many different ones at random, ascending."""
    if not num_samples or num_samples >= count:
        return list(range(count))
    return sorted(torch.randperm(count, generator=generator)[:num_samples].tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryNoising(Noising):
    """The canvas as it was before each step of the rollout; the tokens which that step wrote are scored.

    TraceRL (arXiv 2509.06949). ``trajectory_shrink`` merges that many steps into one stage. The tail is hidden until the stop token
    is written and padding from then on, as the sampler saw it; where a stop token was written after tokens behind it,
    these count as not yet written. ``num_samples`` stages are drawn at random, 0 = all.

    Where attention is in blocks, step j of every block goes into one draw, because each is scored behind the finished blocks before
    it: an answer in blocks of k tokens has at most k draws, whatever its length. Stages are then those of a block, and later blocks
    than the stop token's have none.

    With ``trajectory_shrink`` 1 the scores are otherwise the sampler's own log-probabilities, for a policy with a mask id. Without
    one, the hidden positions hold fresh random tokens, not those that the sampler saw there: the same steps, but other
    states. New, old and reference policy still see the same tokens. Of a model in blocks they are the sampler's where that has
    finished each block before the next.
    """

    every_step: ClassVar[bool] = True
    reads_step_map: ClassVar[bool] = True

    trajectory_shrink: int = key(1, "so many steps of the rollout are merged into one stage", at_least=1)

    def draws(self, answer: Answer, k: int, num_iterations: int, num_samples: int, key: Key) -> list[Draw]:
        """One draw a stage, in the order of writing."""
        stage = torch.full_like(answer.step_map, -1)
        for own in answer.in_blocks:
            stage[own] = merged_steps(answer.step_map[own], self.trajectory_shrink)
        return _stages(answer, stage, num_samples, (*key, k))


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoregressiveNoising(Noising):
    """Left to right: token i is scored with everything before it visible and the rest hidden.

    The exact likelihood of answers written in that order (JustGRPO, arXiv 2601.15165), at one forward a token; where attention is
    in blocks, token j of every block goes into one. ``num_samples`` tokens, of a block, are drawn at random, 0 = all.
    """

    every_step: ClassVar[bool] = True

    def draws(self, answer: Answer, k: int, num_iterations: int, num_samples: int, key: Key) -> list[Draw]:
        """One draw a token, or a token of a block."""
        stage = torch.full_like(answer.step_map, -1)
        for own in answer.in_blocks:
            stage[own] = torch.arange(int(own.sum()))
        return _stages(answer, stage, num_samples, (*key, k))


def _stages(answer: Answer, stage: Int[Tensor, " L"], num_samples: int, key: Key) -> list[Draw]:
    """Stage s scores its own tokens and hides them, later stages and, up to the stop token's own stage, the tail."""
    stop, count = int(stage[answer.completion][-1]) if answer.length else 0, int(stage.max()) + 1
    chosen = chosen_stages(count, num_samples, generator=keyed_generator("stages", *key))
    drawn = []
    for s in chosen:
        target = stage == s
        hidden = (stage >= s) | (answer.tail if s <= stop else False)
        ratio = float((hidden & answer.completion).sum()) / max(answer.length, 1)
        drawn.append(Draw(hidden=hidden, target=target, ratio=ratio, probability=len(chosen) / max(count, 1)))
    return drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockNoising(Noising):
    """A random block of the answer partly hidden, everything behind it hidden: SPG's block-wise masks (2510.09541).

    In the block a number of tokens uniform on 1..m is hidden, m its tokens that count. The prompt is left to
    ``p_mask_prompt``, with which tokens of earlier blocks are hidden too. All hidden tokens that count are scored, as
    in SPG's code; the chance of a token to be scored is taken to be their share of the answer. The draws of a row
    take different blocks while there are enough. Where attention is in blocks, they are its own, whatever ``block_length`` is.
    """

    block_length: int = key(32, "written positions in a block, of the sampler and of block-wise masks", at_least=1)

    def draws(self, answer: Answer, k: int, num_iterations: int, num_samples: int, key: Key) -> list[Draw]:
        """``num_samples`` masks."""
        if answer.block is None:
            place = answer.fill.cumsum(0) - 1
            block_of = torch.where(answer.fill, place // self.block_length, -1)
        else:
            block_of = torch.where(answer.fill, answer.block - answer.block[answer.fill].min(), -1)
        count = int(block_of[answer.completion].max()) + 1 if answer.length else 1
        generator = keyed_generator("blocks", *key, k)
        order = torch.randperm(count, generator=generator).tolist()
        drawn = []
        for s in range(num_samples):
            own = keyed_generator("mask", *key, k, s)
            hidden = self._hidden(answer, block_of, order[s % count], own)
            target = hidden & answer.completion
            ratio = float(target.sum()) / max(answer.length, 1)
            drawn.append(
                Draw(hidden=hidden, target=target, ratio=ratio, probability=max(ratio, 1e-8), share=1.0 / num_samples)
            )
        return drawn

    def _hidden(self, answer: Answer, block_of: Tensor, block: int, generator: torch.Generator) -> Tensor:
        own = answer.completion & (block_of == block)
        size = max(int(own.sum()), 1)
        count = int(torch.randint(1, size + 1, (), generator=generator))
        earlier = answer.completion & (block_of < block) & (block_of >= 0)
        again = independent_subset(earlier, self.p_mask_prompt, generator=generator)
        later = answer.fill & (block_of > block)
        return random_subset(own, count, generator=generator) | again | later | answer.tail
