"""The records that stages exchange, and the legend for every shape in this library.

Legend
------
N prompts · G generations per prompt · B = N·G rows · L positions · K = ``num_iterations`` (inner updates) ·
S = noise draws per inner update · V vocabulary · W width of a token space · n selected rows of a forward.

Masks are ``bool`` and say what they mark by their name: ``attention_mask`` True = real token, ``fill_mask`` True = the
policy writes here, ``hidden`` True = corrupted, ``target`` True = scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


TASKS = ("text", "mmu", "t2i", "r2i", "i2i")
"""Tasks of rows: text reasoning, image understanding (image in, text out), text-to-image, a thought before the picture, and editing
(image in, image out)."""

IMAGE_IN = ("mmu", "i2i")
"""Tasks of rows whose prompt shows a picture; that of ``r2i`` may."""

SPANS = {"r2i": ("thought", "picture")}
"""Tasks whose answer is written in several spans, one after the other, each on a canvas of its own."""

CANVAS_TASKS = ("text", "mmu", "t2i", "thought", "picture", "i2i")
"""Tasks of canvases, and so of everything that is set or measured by task: a row's own, or its spans."""

KINDS = {"thought": "text", "picture": "t2i", "i2i": "t2i"}
"""The task that a canvas of another one is written like."""

Guidance = float | tuple[float, float]
"""The scale s of classifier-free guidance away from the row without what is asked; beside it that away from the row without its
picture: logits c + s (c - u) + s' (c - u')."""


def spans_of(task: str) -> tuple[str, ...]:
    """The canvases that an answer to ``task`` is written on, in order."""
    return SPANS.get(task, (task,))


def canvas_tasks(tasks: Iterable[str]) -> list[str]:
    """The canvases that answers to ``tasks`` are written on, each once, in an order that all ranks share."""
    return sorted({span for task in tasks for span in spans_of(task)})


def is_picture(task: str) -> bool:
    """Whether a canvas of ``task`` is written with the codes of a picture."""
    return KINDS.get(task, task) == "t2i"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpace:
    """A contiguous range ``[start, stop)`` of vocabulary ids minus ``exclude``: what one task may write.

    Sampler, confidence and likelihood all use the same space, so a log-probability is always normalised over it.
    """

    start: int
    stop: int
    exclude: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"TokenSpace needs 0 <= start < stop, got start={self.start}, stop={self.stop}")
        outside = [token for token in self.exclude if not self.start <= token < self.stop]
        if outside:
            raise ValueError(f"TokenSpace.exclude holds {outside}, outside [{self.start}, {self.stop})")

    @property
    def width(self) -> int:
        return self.stop - self.start

    def contains(self, ids: Tensor) -> Tensor:
        """Elementwise membership, same shape as ``ids``."""
        inside = (ids >= self.start) & (ids < self.stop)
        for token in self.exclude:
            inside &= ids != token
        return inside

    def draw(self, count: int, *, generator: torch.Generator) -> Tensor:
        """``count`` of its ids ``[count]``, uniform and independent, on the CPU."""
        allowed = torch.arange(self.start, self.stop)
        allowed = allowed[self.contains(allowed)]
        return allowed[torch.randint(len(allowed), (count,), generator=generator)]


def take(record, indices: Tensor):
    """The record restricted to the rows at ``indices`` (int64 ``[b]``), in that order.

    Tensors and lists are row-first, dictionaries hold either, the rest is shared.
    """

    def taken(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[indices.to(value.device)]
        if isinstance(value, Canvas):
            return value.take(indices)
        if isinstance(value, dict):
            return {key: taken(item) for key, item in value.items()}
        if isinstance(value, list):
            return [value[index] for index in indices.tolist()]
        return value

    return replace(record, **{item.name: taken(getattr(record, item.name)) for item in fields(record)})


def to(record, device: torch.device | str):
    """The record with every tensor on ``device``."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor) or hasattr(value, "to"):
            return value.to(device)
        if isinstance(value, dict):
            return {key: moved(item) for key, item in value.items()}
        return value

    return replace(record, **{item.name: moved(getattr(record, item.name)) for item in fields(record)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """What a policy reads and where it writes. All rows belong to one task.

    Attributes:
        ids: ``[B, L]`` int64; the mask id (or any id, for models without one) at ``fill_mask``.
        fill_mask: ``[B, L]`` bool, True where the policy must write.
        attention_mask: ``[B, L]`` bool, True = real token.
        task: one of ``CANVAS_TASKS``.
        token_space: what may be written.
        position_ids: ``[B, L]`` int64, or None for 0..L-1 from the left edge.
        extra: further row-first model inputs.
    """

    ids: Tensor
    fill_mask: Tensor
    attention_mask: Tensor
    task: str
    token_space: TokenSpace
    position_ids: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    take = take
    to = to


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A canvas that a sampler has filled.

    Attributes:
        canvas: the filled canvas; after a row's first stop token the tail holds the pad id.
        completion_mask: ``[B, L]`` bool, the written tokens that count: up to and including the first stop token.
        step_map: ``[B, L]`` int64, the denoising step that wrote each token, -1 elsewhere.
        sampling_logps: ``[B, L]`` fp32, log-probability of each written token when it was drawn (nats), 0 elsewhere.
        completions: decoded answers, ``str`` or ``PIL.Image``, one a row.
        edits: ``[B, L]`` int64, how often each token was written over, 0 outside ``completion_mask``; ``step_map`` and
            ``sampling_logps`` are those of its last writing. None where a sampler writes each token once.
    """

    canvas: Canvas
    completion_mask: Tensor
    step_map: Tensor
    sampling_logps: Tensor
    completions: list[Any]
    edits: Tensor | None = None

    take = take
    to = to


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Corruption as data: drawn once, used alike for the new, old and reference policy.

    Attributes:
        hidden: ``[B, K, S, L]`` bool, positions corrupted.
        target: ``[B, K, S, L]`` bool, positions scored; draws a row does not have are all False.
        weight: ``[B, K, S, L]`` fp32, coefficient of each scored log-probability.
        mask_ratio: ``[B, K, S]`` fp32, the ratio asked for, for the log.
        input_ids: ``[B, K, S, L]`` int64, for corruption that is not a mask id.
    """

    hidden: Tensor
    target: Tensor
    weight: Tensor
    mask_ratio: Tensor
    input_ids: Tensor | None = None

    def at(self, k: int) -> Noise:
        """Inner update ``k``: the same record with K = 1."""
        return Noise(
            hidden=self.hidden[:, k : k + 1],
            target=self.target[:, k : k + 1],
            weight=self.weight[:, k : k + 1],
            mask_ratio=self.mask_ratio[:, k : k + 1],
            input_ids=None if self.input_ids is None else self.input_ids[:, k : k + 1],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer to a dataset row, as rewards see it, and where it came from.

    Attributes:
        row: the dataset row.
        completion: a text or an RGB picture.
        completion_ids: its tokens that count.
        task: one of ``TASKS``.
        images: RGB pictures that the prompt shows: what is asked about, or edited.
        rollout: what it was decoded from (B = 1); None for an answer that no policy gave.
        earlier: the rollouts of the spans before it; the thought of ``r2i``.
        index: its place in the global window.
        scores: raw rewards ``[F]`` of a held-out answer, scored with its batch.
        lost: ``[F]`` bool, which of them failed.
    """

    row: dict[str, Any]
    completion: Any
    completion_ids: list[int]
    task: str
    images: list[Any] | None = None
    rollout: Rollout | None = None
    earlier: tuple[Rollout, ...] = ()
    index: int = 0
    scores: Tensor | None = None
    lost: Tensor | None = None

    @property
    def rollouts(self) -> tuple[Rollout, ...]:
        """Those of all spans, in order."""
        assert self.rollout is not None, "a policy gave the answer"
        return (*self.earlier, self.rollout)

    @property
    def thought(self) -> str | None:
        """What was written before the picture; None for answers of one span."""
        return self.earlier[0].completions[0] if self.earlier else None

    @property
    def for_reward(self) -> Any:
        """Chat prompts get a one-message list, as in TRL; strings and images stay as they are."""
        if isinstance(self.row["prompt"], str) or not isinstance(self.completion, str):
            return self.completion
        return [{"role": "assistant", "content": self.completion}]


@dataclass(slots=True, kw_only=True)
class Experience:
    """The training data of one answer, unpadded, with everything that travels with it.

    Attributes:
        ids, attention_mask, fill_mask, completion_mask: ``[L]``; position_ids ``[L]`` or None.
        hidden, target: ``[K, S, L]`` bool; weight ``[K, S, L]`` fp32; input_ids ``[K, S, L]`` or None.
        old_logps, ref_logps: ``[K, S, L]`` fp32, 0 outside ``target``; None while nothing was computed.
        old_known: ``[K]`` bool, False where the policy has not moved since the rollout, so that old = new.
        sampling_logps: ``[L]`` fp32.
        step_map: ``[L]`` int64.
        advantage: the group-relative advantage of the row.
        active: False for a row that must not move the policy (no reward applied to it); its loss is 0.
        task: one of ``CANVAS_TASKS``.
        extra: row-first model inputs of this row, batch dimension kept (size 1).
        index: the row's place in the global window, before any shuffling; the spans of an answer share it.
    """

    ids: Tensor
    attention_mask: Tensor
    fill_mask: Tensor
    completion_mask: Tensor
    hidden: Tensor
    target: Tensor
    weight: Tensor
    sampling_logps: Tensor
    step_map: Tensor
    advantage: float
    active: bool
    task: str
    token_space: TokenSpace
    index: int
    position_ids: Tensor | None = None
    input_ids: Tensor | None = None
    old_logps: Tensor | None = None
    old_known: Tensor | None = None
    ref_logps: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def knows_old(self, k: int) -> bool:
        """Whether ``old_logps`` of inner update ``k`` were computed."""
        return self.old_known is not None and bool(self.old_known[k])


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on ``key`` alone, so that a draw is the same on any rank, device or batch."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
