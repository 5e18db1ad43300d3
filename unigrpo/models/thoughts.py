"""Rows to train on that hold a thought and its picture, with everything in place; what families share of ``encode_thought``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import TooLongError
from ..types import SPANS, Canvas


if TYPE_CHECKING:
    from .text_canvas import TextCanvasPolicy


def padded_thought(policy: TextCanvasPolicy, row: dict[str, Any], thought: list[int], max_length: int) -> Tensor:
    """Ids ``[n]`` int64 of the thought and its padding, which with the chat prompt of ``row`` fill ``max_length`` positions.

    Raises:
        TooLongError: prompt and thought do not fit.
    """
    used = len(policy.processor.encode_prompt(row["prompt"], "r2i"))
    room = max_length - used
    if len(thought) > room:
        raise TooLongError(
            f"a prompt of {used} and a thought of {len(thought)} tokens do not fit {max_length} positions"
        )
    return torch.tensor(thought + [policy.pad_token_id] * (room - len(thought)), dtype=torch.int64)


def edit_in_place(
    policy: TextCanvasPolicy, name: str, row: dict[str, Any], thought: list[int], max_length: int, **lengths: Any
) -> Canvas:
    """The canvas of ``policy.encode`` with the thought and ``row["edited_codes"] [N]`` in place, both in its ``fill_mask``.

    Args:
        name: of the family, for errors.
        lengths: how many codes there are, as ``policy.image_lengths`` says it.

    Raises:
        ValueError: prompt and thought do not fit, or there is no edit.
    """
    if "edited_codes" not in row:
        raise ValueError(f"a row of {name} has two pictures: give the one to make as 'edited_image'")
    written = padded_thought(policy, row, thought, max_length)
    rows, lengths = [{**row, "thought_ids": written}], {**lengths, "max_completion_length": len(written)}
    text, canvas = (policy.encode(rows, span, **lengths) for span in SPANS["r2i"])
    return replace(
        canvas,
        ids=canvas.ids.masked_scatter(canvas.fill_mask, row["edited_codes"] + policy.config.image_token_offset),
        fill_mask=canvas.fill_mask | text.fill_mask,
        task="r2i",
        token_space=policy.token_space("text"),
    )
