"""Block diffusion: the blocks of block-causal attention, one after the other, beside keys and values that are exact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..models.base import DiffusionPolicy
from ..models.blocks import blocks_of
from ..models.placing import upload
from ..parts import MOST_REPEATS, MOST_STEPS, check_keys, internal, key
from ..types import Canvas, Rollout
from .base import GUIDANCE, TEMPERATURE, CanvasWriter, Drawn, Stepwise, check_streams, scatter
from .kv_cache import SettledBlocks
from .semi_autoregressive import split_evenly, surest


ORDERS = ("static", "dynamic", "entropy", "sequential")
DYNAMIC = ("order is 'dynamic'", lambda settings: settings.order == "dynamic")
SCHEDULED = ("order is not 'entropy'", lambda settings: settings.order != "entropy")
BOUNDED = ("order is 'entropy'", lambda settings: settings.order == "entropy")
EDITED = ("edit_threshold is set", lambda settings: settings.edit_threshold is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block(Stepwise):
    """The sampler of block-causal models: BD3-LM (arXiv 2503.09573), SDAR (2510.06303), LLaDA2.x.

    Each row stands at the block of its first hole, which may be half prompt. A step runs the model on the rows' blocks and commits
    some of their holes; a row whose block is full goes on to its next one in the next step, and leaves the batch after its last.

    The ``steps`` of an answer are split evenly over its blocks, and a block's positions over its steps: 256 positions, 128 steps and
    blocks of 4 make 2 positions a step. A block that begins in the prompt, or is cut off by the end of the canvas, takes as
    many positions a step and so fewer steps. ``order="entropy"`` takes as many as it needs.

    With ``edit_threshold`` each step also draws anew for the answer's tokens that the block holds already, and writes those over whose
    new token is another one and more probable than that (LLaDA2.1). A block without holes goes on so until nothing is
    edited, ``post_steps`` at most. ``Rollout.edits`` counts how often each token was written over; ``step_map`` and
    ``sampling_logps`` are those of its last writing. What stands behind a stop token becomes padding when its block is finished.

    Where a token space holds the mask id, that is a token like any other: it is written, and no hole any more.

    Args:
        stop: ``"first"``: an answer ends at its first stop token; ``"never"``: fill everything.
    """

    tasks: ClassVar[tuple[str, ...]] = ("text", "mmu")
    exact_decoding: ClassVar[dict[str, Any]] = {
        "kv_cache": "exact",
        "confidence_threshold": None,
        "entropy_bound": 0.0,
    }

    steps: int = key(
        128,
        "denoising steps of the whole answer, at least one a block",
        at_least=1,
        at_most=MOST_STEPS,
        read_if=SCHEDULED,
    )
    block_length: int | None = key(None, "written positions in a block; none = the model's own block size", at_least=1)
    temperature: float = key(1.0, TEMPERATURE, at_least=0)
    order: str = key(
        "static",
        """which holes of a block a step of the block sampler commits: the surest ("static"), also all that are surer than
        confidence_threshold ("dynamic"), those of least entropy whose entropies, but for the largest, add up to no more than
        entropy_bound ("entropy"; EB-sampler, arXiv 2505.24857), or the leftmost ("sequential")""",
        choices=ORDERS,
    )
    confidence_threshold: float | None = key(
        0.9,
        "what is more probable than this is committed too, beside the scheduled tokens",
        above=0,
        below=1,
        read_if=DYNAMIC,
    )
    entropy_bound: float = key(0.1, "nats, of order 'entropy'; 0 = one token a step", at_least=0, read_if=BOUNDED)
    edit_threshold: float | None = key(
        None,
        "a written token of the block is written over by another one that is more probable than this; none = what is written stays",
        above=0,
        at_most=1,
    )
    post_steps: int = key(
        16, "steps that may only edit, of each block", at_least=0, at_most=MOST_REPEATS, read_if=EDITED
    )
    guidance_scale: float = key(0.0, GUIDANCE, at_least=0)
    kv_cache: str = key(
        "exact",
        'keys and values of finished blocks are kept ("exact"), where the model can, or made anew ("none"); the answers are the same',
        choices=("none", "exact"),
    )
    stop: str = internal("first")

    def __post_init__(self) -> None:
        check_keys(self)
        if self.stop not in ("first", "never"):
            raise ValueError(f"stop={self.stop!r}: choose 'first' or 'never'")

    def begin(self, policy: DiffusionPolicy, canvas: Canvas, generators: list[torch.Generator]) -> GridWriter:
        """The canvas on the model's grid, nothing written yet.

        Raises:
            ValueError: full attention, another block length than the model's, or fewer steps than blocks.
        """
        check_streams(generators, canvas)
        self.check_policy(policy)
        return GridWriter(canvas, policy, self, generators)

    def check_policy(
        self, policy: DiffusionPolicy, length: int = 0, where: str = "", steps_key: str = "steps"
    ) -> None:
        """As in ``Stepwise``."""
        name, size = type(policy).__name__, policy.block_size
        if size is None:
            raise ValueError(
                f"{where}sampler='block' writes models whose attention is block-causal, and {name}'s is full: set "
                "sampler='semi_autoregressive', or give the model attention='block_causal' and its block_size"
            )
        if self.block_length not in (None, size):
            raise ValueError(
                f"{where}block_length={self.block_length} is not the block_size={size} of {name}'s attention: leave it out"
            )
        if policy.mask_token_id is None:
            raise ValueError(
                f"{where}sampler='block' writes at a mask id, and {name} has none: set sampler='entropy_bound'"
            )
        blocks = -(-length // size)
        if self.steps < blocks and self.order != "entropy":
            raise ValueError(
                f"{where}{steps_key}={self.steps} is less than the {blocks} blocks of {size} positions of an answer: raise "
                f"{steps_key}"
            )

    def advance(self, model: Any, writer: GridWriter, generators: list[torch.Generator]) -> Iterator[tuple[int, int]]:
        """As in ``Stepwise``."""
        done, total = 0, writer.most_steps()
        while rows := writer.unfinished():
            writer.step(model, rows, done, generators)
            done += 1
            yield done, total
        if done < total:
            yield total, total


@dataclass(slots=True)
class _Place:
    """Where a row stands.

    Attributes:
        number: the how many-th block of its answer that is, -1 before the first.
        steps: forwards made in it; ``checks``: those that could only edit.
        left: holes of it before the next forward.
    """

    number: int = -1
    steps: int = 0
    checks: int = 0
    left: int = 0


class GridWriter(CanvasWriter):
    """The canvas with its grid of blocks, and where each row stands in it.

    Attributes:
        blocks: of each row ``(start, stop, holes)`` of those that hold some of its answer: columns, and positions to write.
        schedules: of each of these, the positions that its steps commit while it holds so many.
        edits: ``[B, L]``, as in ``Rollout``.
        going: rows that are not finished.
    """

    def __init__(
        self, canvas: Canvas, policy: DiffusionPolicy, sampler: Block, streams: list[torch.Generator]
    ) -> None:
        assert policy.block_size is not None, "begin has asked for it"
        self.edited = sampler.edit_threshold is not None
        # An edit may take a stop token back: then an answer ends with its block.
        super().__init__(canvas, policy, sampler.guidance_scale, streams, "never" if self.edited else sampler.stop)
        self.sampler, self.size = sampler, policy.block_size
        self.blocks = _blocks(canvas, blocks_of(canvas, self.size, policy.block_anchor))
        self.schedules = [self._schedule(sum(holes for *_, holes in own), len(own)) for own in self.blocks]
        self.places, self.going = [_Place() for _ in self.blocks], list(range(len(self.blocks)))
        self.active, self.edits = torch.zeros_like(self.hidden), torch.zeros_like(canvas.ids)
        self.changed = torch.zeros_like(self.lost_at)
        self.kept = None
        if sampler.kv_cache == "exact" and policy.supports_cache:
            self.kept = SettledBlocks(policy.logit_shift, guided=bool(self.twins), length=canvas.ids.shape[1])

    def _schedule(self, holes: int, blocks: int) -> list[list[int]]:
        """Positions that each step commits in a whole block, for each of the ``blocks`` of an answer of ``holes``."""
        self.sampler.check_policy(self.policy, holes)
        # Steps that are made when so many blocks are full, of an answer that begins with one.
        marks = [-(-number * self.size * self.sampler.steps // max(holes, 1)) for number in range(blocks + 1)]
        each = [min(max(after - before, 1), self.size) for before, after in pairwise(marks)]
        return [split_evenly(self.size, steps) for steps in each]

    def most_steps(self) -> int:
        """Steps of the slowest row, where none ends early."""
        longest = 1
        for blocks, schedule in zip(self.blocks, self.schedules, strict=True):
            total = 0
            for (*_, holes), counts in zip(blocks, schedule, strict=True):
                needed = next(number for number, done in enumerate(accumulate(counts), 1) if done >= holes)
                total += holes if self.sampler.order == "entropy" else needed
                total += self.sampler.post_steps if self.edited else 0
            longest = max(longest, total)
        return longest

    def unfinished(self) -> list[int]:
        """The rows that have something to do, each at its block; a row whose block is finished stands at its next one.

        One wait for the device tells holes left in the block, edits of the last step, whether a stop token stands there, and
        holes left at all.
        """
        ends = self.edited and self.sampler.stop == "first"
        stopped = self.is_stop().any(dim=1) if ends else torch.zeros_like(self.changed)
        left, changed, ended, held = self.read(
            (self.hidden & self.active).sum(dim=1), self.changed, stopped, self.hidden.sum(dim=1)
        )
        over, moving = [], []
        for row in self.going:
            place = self.places[row]
            if not self._leaves(place, left[row], changed[row]):
                place.checks += not left[row]
                place.left = left[row]
            elif not held[row] or (ended[row] and place.number >= 0):
                over.append(row)
            else:
                moving.append(row)
        if ends and over:
            self._fill_tail(upload(over, self.ids.device))
        gone = set(over)
        self.going = [row for row in self.going if row not in gone]
        self._move(moving)
        return self.going

    def _leaves(self, place: _Place, left: int, changed: int) -> bool:
        """Whether a row has done what its block asks for. One that edits stays while its last step wrote a hole or changed a token."""
        if place.number < 0:
            return True
        return not left and (not self.edited or not (place.left or changed) or place.checks >= self.sampler.post_steps)

    def _move(self, rows: list[int]) -> None:
        """``rows`` stand at their next block."""
        if not rows:
            return
        spans = []
        for row in rows:
            number = self.places[row].number + 1
            start, stop, holes = self.blocks[row][number]
            self.places[row] = _Place(number=number, left=holes)
            spans.append((start, stop))
        bounds = upload(spans, self.ids.device)
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        self.active[upload(rows, self.ids.device)] = (columns >= bounds[:, :1]) & (columns < bounds[:, 1:])

    def step(self, model: Any, rows: list[int], step: int, generators: list[torch.Generator]) -> None:
        """One forward of ``rows``, and what it writes."""
        active, places, k = upload(rows, self.ids.device), [self.places[row] for row in rows], []
        for row, place in zip(rows, places, strict=True):
            counts = self.schedules[row][place.number]
            k.append(counts[min(place.steps, len(counts) - 1)])
            place.steps += 1
        holes = self.hidden[active] & self.active[active]
        asked, counts = holes, [place.left for place in places]
        spans = [self.blocks[row][place.number] for row, place in zip(rows, places, strict=True)]
        if self.edited:
            asked = self.canvas.fill_mask[active] & self.active[active]
            counts = [holes for *_, holes in spans]
        options: dict[str, Any] = {"entropy": self.sampler.order == "entropy", "truncation": self.sampler.truncation}
        if self.kept is not None:
            options["cache"] = self.kept.ready(rows, [own[:2] for own in spans], self.ids.device)
        streams = [generators[row] for row in rows]
        drawn = self.draw(model, active, asked, counts, self.sampler.temperature, streams, **options)
        tokens = scatter(asked, drawn.tokens)
        written = self._chosen(drawn, asked, holes, upload(k, self.ids.device))
        if self.sampler.edit_threshold is not None:
            sure = scatter(asked, drawn.logps.exp() > self.sampler.edit_threshold)
            again = asked & ~holes & sure & (tokens != self.ids[active])
            self.edits[active] += again
            self.changed[active] = again.any(dim=1).to(self.changed)
            written |= again
        self.write(active, written, tokens, scatter(asked, drawn.sampling_logps), step)

    def _chosen(self, drawn: Drawn, asked: Tensor, holes: Tensor, k: Tensor) -> Tensor:
        """The ``holes [b, L]`` that are committed, among what was ``asked`` for."""
        sampler = self.sampler
        if sampler.order == "sequential":
            return holes & (holes.cumsum(dim=1) <= k[:, None])
        if sampler.order == "entropy":
            assert drawn.entropy is not None, "the model returns no entropy, which order='entropy' reads"
            return within_bound(scatter(asked, drawn.entropy), holes, sampler.entropy_bound)
        # A model of somebody else may not say how much it doubts.
        confidence = drawn.logps if drawn.doubt is None else -drawn.doubt
        chosen = surest(scatter(asked, confidence), holes, k)
        if sampler.order == "dynamic" and sampler.confidence_threshold is not None:
            chosen |= holes & scatter(asked, drawn.logps.exp() > sampler.confidence_threshold)
        return chosen

    def rollout(self) -> Rollout:
        """Also says what was edited, where anything can be."""
        found = super().rollout()
        return replace(found, edits=self.edits.masked_fill(~found.completion_mask, 0)) if self.edited else found


def within_bound(entropy: Tensor, holes: Tensor, bound: float) -> Tensor:
    """The ``holes [b, L]`` of least ``entropy [b, L]``, as many as have entropies that sum, but for the largest, to ``bound`` at most:
    the joint law is then that close to the product of theirs. One at least in each row.
    """
    values, order = entropy.double().masked_fill(~holes, torch.inf).sort(dim=1, stable=True)
    # Behind the last hole infinity minus infinity is not a number, and no more than any bound.
    within = values.cumsum(dim=1) - values <= bound
    return torch.zeros_like(holes).scatter(1, order, within) & holes


def _blocks(canvas: Canvas, block_of: Tensor) -> list[list[tuple[int, int, int]]]:
    """``GridWriter.blocks``, on the host; ``block_of [B, L]``."""
    found = []
    rows = zip(block_of.cpu(), canvas.attention_mask.cpu(), canvas.fill_mask.cpu(), strict=True)
    for blocks, real, fill in rows:
        columns = real.nonzero().squeeze(1)
        _, sizes = blocks[columns].unique_consecutive(return_counts=True)
        groups = columns.split(sizes.tolist())
        spans = [(int(own[0]), int(own[-1]) + 1, int(fill[own].sum())) for own in groups]
        found.append([span for span in spans if span[2]])
    return found
