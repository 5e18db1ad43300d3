"""Semi-autoregressive denoising of text: block after block, the most confident tokens first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
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
    signed_guidance,
    uniforms,
    warn_of_blocks,
)
from .kv_cache import BlockCache


STOPS = ("first", "block_end", "never")
EXACT_DECODING = {"kv_cache": "none", "confidence_threshold": None, "exit_entropy": None}
"""The approximate shortcuts of text decoding, switched off."""


def split_evenly(total: int, parts: int) -> list[int]:
    """``total`` in ``parts`` near-equal integers, the remainder on the first ones."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def transfer_counts(masked: list[int], steps: int) -> list[list[int]]:
    """Tokens that each of the B rows commits at each step, ``[steps, B]``: ``masked [B]`` split evenly, the rest first."""
    return [[own // steps + (step < own % steps) for own in masked] for step in range(steps)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SemiAutoregressive(Stepwise):
    """LLaDA's and MMaDA's text sampler (``generate``, ``mmu_generate``).

    A canvas is cut into blocks of ``block_length`` written positions. Each step runs the model, draws a token for every
    masked position of the active block and commits the most confident ones. Steps that would commit nothing run nothing.

    Args:
        stop: ``"first"``: after a row's first stop token its tail becomes padding and is no longer denoised;
            ``"block_end"``: return once every row's block ends with a stop token (``mmu_generate_fast``);
            ``"never"``: fill everything.
    """

    tasks: ClassVar[tuple[str, ...]] = ("text", "mmu")
    exact_decoding: ClassVar[dict[str, Any]] = EXACT_DECODING

    steps: int = key(
        128,
        "denoising steps of the whole answer, at least one a block; they need not divide evenly",
        at_least=1,
        at_most=MOST_STEPS,
    )
    block_length: int = key(32, "written positions in a block", at_least=1)
    temperature: float = key(1.0, TEMPERATURE, at_least=0)
    remasking: str = key(
        "low_confidence",
        'each step keeps the tokens of highest probability ("low_confidence"), or random ones ("random")',
        choices=("low_confidence", "random"),
    )
    guidance_scale: float = key(0.0, GUIDANCE, at_least=0)
    guidance_direction: str = key(
        "toward",
        """guidance moves answers "toward" the prompt; "away" from it, with logits c + s (u - c), is what MMaDA-Parallel-M's code does to
        its texts""",
        choices=("toward", "away"),
        read_if=("guidance_scale is above 0", lambda settings: settings.guidance_scale > 0),
    )
    logits_eos_inf: bool = key(
        False, "the end of the text, the policy's first stop token, is never drawn; likelihoods keep the whole law"
    )
    confidence_eos_eot_inf: bool = key(False, "stop tokens are the last to be committed in their block")
    stop: str = internal("first")
    kv_cache: str = key(
        "none",
        """approximate decoding (Fast-dLLM, arXiv 2505.22618): keys and values outside the active block are refreshed once a
        block, by its first forward; "prefix" keeps those before the block, "dual" those on both sides, "none" none. The block sampler,
        for block-causal attention, has "exact" and "none"; its answers are the same""",
        choices=("none", "prefix", "dual", "exact"),
    )
    confidence_threshold: float | None = key(
        None,
        """approximate decoding: what is more probable than this is committed too, beside the scheduled tokens; none = the
        schedule alone""",
        above=0,
        below=1,
    )
    exit_entropy: float | None = key(
        None,
        "approximate decoding: a block is committed whole once no hole of it has more entropy than this, in nats",
        at_least=0,
    )

    def __post_init__(self) -> None:
        check_keys(self)
        if self.stop not in STOPS:
            raise ValueError(f"stop={self.stop!r}: choose one of {STOPS}")
        if self.kv_cache == "exact":
            raise ValueError(
                "kv_cache='exact' is for block-causal attention, where no later token changes a key: set sampler='block', or "
                "kv_cache to 'prefix' or 'dual', which are approximate"
            )
        if self.confidence_threshold is not None and self.remasking == "random":
            raise ValueError(
                f"confidence_threshold={self.confidence_threshold} commits by confidence, and remasking='random' does not: set "
                "remasking='low_confidence', or no threshold"
            )

    def check_policy(
        self, policy: DiffusionPolicy, length: int = 0, where: str = "", steps_key: str = "steps"
    ) -> None:
        """As in ``Stepwise``: blocks of attention want a sampler that finishes each before the next."""
        own = self.block_length == policy.block_size and policy.block_anchor == "prompt_end"
        if policy.block_size is not None and not own:
            warn_of_blocks("semi_autoregressive", policy)

    def begin(self, policy: DiffusionPolicy, canvas: Canvas, generators: list[torch.Generator]) -> BlockWriter:
        """The canvas with its blocks, nothing written yet."""
        check_streams(generators, canvas)
        return BlockWriter(canvas, policy, self, generators)

    def advance(self, model: Any, writer: BlockWriter, generators: list[torch.Generator]) -> Iterator[tuple[int, int]]:
        """As in ``Stepwise``; raises ``ValueError`` for fewer steps than blocks."""
        schedule = split_evenly(self.steps, writer.blocks)
        if schedule and schedule[-1] == 0:
            raise ValueError(
                f"steps={self.steps} is less than the {writer.blocks} blocks of block_length={self.block_length}: "
                "raise steps or block_length"
            )
        done = 0
        for block, steps in enumerate(schedule):
            for k in transfer_counts(writer.masked_in(block), steps):
                writer.reveal(model, block, k, done, generators)
                done += 1
                yield done, self.steps
            if self.stop == "block_end" and writer.all_end_with_stop(block):
                break


class BlockWriter(CanvasWriter):
    """The canvas with its blocks and stop tokens."""

    def __init__(
        self, canvas: Canvas, policy: DiffusionPolicy, sampler: SemiAutoregressive, streams: list[torch.Generator]
    ) -> None:
        super().__init__(canvas, policy, signed_guidance(sampler), streams, sampler.stop)
        self.sampler, fill = sampler, canvas.fill_mask
        if sampler.logits_eos_inf:
            self.space = replace(self.space, exclude=self.closed())
        self.block_of = torch.where(fill, (fill.cumsum(1) - 1) // sampler.block_length, -1)
        self.blocks = int(self.block_of.max()) + 1
        self.kept = None
        if sampler.kv_cache != "none":
            self.kept = BlockCache(sampler.kv_cache, policy, guided=bool(self.twins), length=canvas.ids.shape[1])
            self.columns = self._columns_of_blocks()

    def closed(self) -> tuple[int, ...]:
        """Ids that are not drawn where ``logits_eos_inf``."""
        space = self.canvas.token_space
        end = [own for own in self.policy.stop_token_ids[:1] if space.start <= own < space.stop]
        return tuple(dict.fromkeys((*space.exclude, *end)))

    def _columns_of_blocks(self) -> list[tuple[int, int]]:
        """``[start, stop)`` of each block, over all rows."""
        block_of = self.block_of.cpu()
        found = [(block_of == own).any(dim=0).nonzero().squeeze(1).tolist() for own in range(self.blocks)]
        return [(own[0], own[-1] + 1) for own in found]

    def masked_in(self, block: int) -> list[int]:
        (masked,) = self.read((self.hidden & (self.block_of == block)).sum(dim=1))
        return masked

    def reveal(self, model, block: int, k: list[int], step: int, generators: list[torch.Generator]) -> None:
        """Commit ``k [B]`` tokens a row, in one forward of the rows that have something to commit."""
        if not any(k):
            return
        candidates = self.hidden & (self.block_of <= block) & (self.block_of >= 0)
        held, first = self.read(candidates.sum(dim=1), candidates.int().argmax(dim=1))
        rows = [row for row, count in enumerate(held) if count and k[row]]
        if not rows:
            return
        active = upload(rows, self.ids.device)
        candidates, counts = candidates[active], [held[row] for row in rows]
        streams = [generators[row] for row in rows]
        options = {}
        if self.kept is not None:
            # A hole that an earlier block has left (a drawn mask id) is a candidate still.
            start = min([self.columns[block][0], *(first[row] for row in rows)])
            options["cache"] = self.kept.ready(block, rows, start, self.columns[block][1])
        drawn = self.draw_block(model, active, candidates, counts, streams, **options)
        # A model of somebody else may not say how much it doubts.
        confidence = drawn.logps if drawn.doubt is None else -drawn.doubt
        if self.sampler.remasking == "random":
            confidence = uniforms(counts, streams, self.ids.device).float()
        if self.sampler.confidence_eos_eot_inf:
            least = torch.finfo(confidence.dtype).min
            confidence = confidence.masked_fill(torch.isin(drawn.tokens, self.stops), least)
        wanted = upload([k[row] for row in rows], self.ids.device)
        commit = most_confident(confidence, candidates, wanted) | self._sure(drawn, candidates)
        self.write(active, commit, scatter(candidates, drawn.tokens), scatter(candidates, drawn.sampling_logps), step)

    def draw_block(
        self,
        model,
        rows: Tensor,
        holes: Tensor,
        counts: list[int],
        streams: list[torch.Generator],
        **options: Any,
    ) -> Drawn:
        """A token for each of the ``holes [b, L]`` in ``rows [b]``; arguments as in ``draw``."""
        with_entropy = self.sampler.exit_entropy is not None
        options |= {"entropy": with_entropy, "truncation": self.sampler.truncation}
        return self.draw(model, rows, holes, counts, self.sampler.temperature, streams, **options)

    def _sure(self, drawn: Drawn, candidates: Tensor) -> Tensor:
        """What is committed beside the schedule, ``[b, L]``: probable tokens, and all of a block without a doubtful hole."""
        sure = torch.zeros_like(candidates)
        if self.sampler.confidence_threshold is not None:
            sure |= scatter(candidates, drawn.logps.exp() > self.sampler.confidence_threshold)
        if self.sampler.exit_entropy is not None:
            assert drawn.entropy is not None, "the model returns no entropy, which exit_entropy reads"
            doubtful = scatter(candidates, drawn.entropy > self.sampler.exit_entropy).any(dim=1)
            sure |= candidates & ~doubtful[:, None]
        return sure

    def write(self, rows: Tensor, places: Tensor, tokens: Tensor, logps: Tensor, step: int) -> None:
        """Also keeps a drawn mask id a hole."""
        # A mask id behind a stop token is in its tail: no hole any more.
        holes = self.hidden[rows] & places
        super().write(rows, places, tokens, logps, step)
        if self.policy.mask_token_id is not None:
            self.hidden[rows] |= holes & (self.ids[rows] == self.policy.mask_token_id)

    def all_end_with_stop(self, block: int) -> bool:
        inside = self.block_of == block
        last = inside & (inside.flip(1).cumsum(1).flip(1) == 1)
        return bool((self.is_stop() & last).any(dim=1).all())


def most_confident(confidence: Tensor, candidates: Tensor, k: Tensor) -> Tensor:
    """The ``k [b]`` candidates of highest ``confidence [n]`` in each row, bool ``[b, L]``; ties go to the left."""
    return surest(scatter(candidates, confidence), candidates, k)


def surest(scores: Tensor, candidates: Tensor, k: Tensor) -> Tensor:
    """As ``most_confident``, of ``scores [b, L]``."""
    scores = scores.masked_fill(~candidates, -torch.inf)
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < k[:, None]) & candidates
