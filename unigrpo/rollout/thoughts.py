"""Thoughts that pictures are drawn under (task ``r2i``): those that a policy has written, and given ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..models.base import DiffusionPolicy
from ..samplers.joint import write_together
from ..samplers.parallel import write_in_parallel
from ..types import Canvas, Rollout


class ThoughtAndPicture(NamedTuple):
    """An answer to a prompt of task ``r2i``."""

    thought: str
    picture: Image.Image


def thought_ids(written: list[Rollout]) -> list[Tensor]:
    """The ids ``[C]`` of each thought, the tail behind a stop token included: ``row["thought_ids"]`` of ``policy.encode``."""
    return [ids[fill].cpu() for own in written for ids, fill in zip(own.canvas.ids, own.canvas.fill_mask, strict=True)]


def under_written(rows: list[dict[str, Any]], rollouts: Iterable[Rollout]) -> list[dict[str, Any]]:
    """``rows`` with the ``thought`` that was written for each, and its ``thought_ids``."""
    written = list(rollouts)
    texts = (text for rollout in written for text in rollout.completions)
    found = zip(rows, texts, thought_ids(written), strict=True)
    return [{**row, "thought": text, "thought_ids": ids} for row, text, ids in found]


def under_given(
    policy: DiffusionPolicy, rows: list[dict[str, Any]], thoughts: list[Any], length: int
) -> list[dict[str, Any]]:
    """``rows`` with a given ``thought`` each, and its ``thought_ids [length]``: a stop token and padding stand behind it, as where a
    policy writes it.

    Raises:
        ValueError: naming the thought: it is no text, too long, or has tokens that no thought may have.
    """
    found = zip(rows, thoughts, strict=True)
    return [
        {**row, "thought": text, "thought_ids": _ids_of(policy, text, length, f"thoughts[{number}]")}
        for number, (row, text) in enumerate(found)
    ]


def under_nothing(policy: DiffusionPolicy, rows: list[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    """``rows`` whose thoughts are to be written with their pictures: ``thought_ids [length]`` hidden."""
    assert policy.mask_token_id is not None, "families with the layout have a mask id"
    return [{**row, "thought_ids": torch.full((length,), policy.mask_token_id)} for row in rows]


TOGETHER = {"joint": write_together, "parallel": write_in_parallel}
"""The ways to write a thought together with its picture, by ``r2i_decoding``."""


class Together:
    """The sampler of a picture whose thought is written with it, in a way of ``TOGETHER``, on canvases of ``under_nothing``.

    Attributes:
        thoughts: of each call, in order.
    """

    def __init__(self, thought: Any, picture: Any, way: str) -> None:
        self.samplers, self.write, self.thoughts = (thought, picture), TOGETHER[way], list[Rollout]()

    @property
    def said(self) -> list[str]:
        """All thoughts, as texts."""
        return [text for own in self.thoughts for text in own.completions]

    def __call__(
        self, model: Any, policy: DiffusionPolicy, canvas: Canvas, *, generators: list, **options: Any
    ) -> Rollout:
        """Fill ``canvas``. One generator of a row serves both spans."""
        holes = (canvas.ids == policy.mask_token_id) & ~canvas.fill_mask & canvas.attention_mask.bool()
        thought = replace(canvas, fill_mask=holes, task="thought", token_space=policy.token_space("thought"))
        streams = [generators, generators]
        first, second = self.write(model, policy, [thought, canvas], self.samplers, generators=streams, **options)
        self.thoughts.append(first)
        return second


def with_thoughts(pictures: list[Image.Image], rows: list[dict[str, Any]], fill: Any) -> list[ThoughtAndPicture]:
    """``pictures`` with the thoughts of their ``rows``, or with those that the sampler ``fill`` wrote together with them."""
    said = fill.said if isinstance(fill, Together) else [row["thought"] for row in rows]
    return [ThoughtAndPicture(thought, picture) for thought, picture in zip(said, pictures, strict=True)]


def _ids_of(policy: DiffusionPolicy, text: Any, length: int, where: str) -> Tensor:
    if not isinstance(text, str):
        raise ValueError(f"{where}={text!r} must be a text; '' is the empty thought")
    ids = policy.answer_ids(text)
    if len(ids) > length:
        raise ValueError(
            f"{where} has {len(ids)} tokens, max_completion_length={length} fit: raise it or shorten the text"
        )
    outside = [token for token in ids if not policy.token_space("thought").contains(torch.tensor(token))]
    if outside:
        raise ValueError(f"{where} holds tokens {outside[:5]} that a thought cannot have: leave them out of the text")
    ids = [*ids, *policy.stop_token_ids[-1:]][:length]
    return torch.tensor(ids + [policy.pad_token_id] * (length - len(ids)), dtype=torch.int64)
