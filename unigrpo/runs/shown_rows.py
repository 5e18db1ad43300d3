"""Rows with given answers as a terminal shows them: what is context, what is trained, and one draw of the noise."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from torch import Tensor

from ..algorithm.denoising import MaskedDenoising
from ..models import DiffusionPolicy
from ..terminal import Text, visible
from ..training.given import Written


STYLES = {"context": "cyan", "trained": "bold green", "padding": "yellow", "unread": "dim", "noised": ""}
"""What a part of a row is, and its colour; the words stand beside the parts too."""

HIDDEN = "reverse"
LONGEST = 700
"""Characters of a part that are shown."""


def padding_of(written: Written, policy: DiffusionPolicy) -> Tensor:
    """``[L]`` bool, what is trained behind the end of the last answer."""
    found, trained = torch.zeros_like(written.trained), written.trained.tolist()
    same = (written.trained & (written.canvas.ids[0] == policy.pad_token_id)).tolist()
    last = max((place for place, own in enumerate(same) if own), default=-1)
    if last < 0 or any(trained[last + 1 : last + 2]):
        return found
    start = last
    while start and same[start - 1]:
        start -= 1
    # Where an answer ends in the token that pads, the first of them is its end.
    found[start + (policy.stop_token_ids[-1:] == (policy.pad_token_id,)) : last + 1] = True
    return found


def text_of(policy: DiffusionPolicy, ids: list[int]) -> str:
    """``ids`` as text; codes of a picture by their number, line breaks with a ``\\n`` before them."""
    tokenizer = getattr(policy.processor, "tokenizer", policy.processor)
    special = getattr(getattr(policy, "config", None), "special_token_ids", None) or {}
    names = {number: tokenizer.decode([number]) for number in (policy.pad_token_id, *special.values())}
    # A family's own marks stand for tokens that its tokenizer holds in reserve.
    names |= {number: f"<|{name}|>" for name, number in special.items() if "reserved" in names[number]}
    codes = policy.token_space("t2i") if policy.codebook_size else None

    def kind(own: int) -> Any:
        if codes is not None and codes.start <= own < codes.stop:
            return "codes"
        return own if own in names else "text"

    pieces = []
    for what, run in groupby(ids, kind):
        own = list(run)
        if what == "text":
            pieces.append(tokenizer.decode(own))
        elif what == "codes":
            pieces.append(f"[{_many(len(own), 'code')}]")
        else:
            pieces.append(names[what] if len(own) == 1 else f"{names[what]} x {len(own):,}")
    return visible("".join(pieces).replace("\n", "\\n\n").removesuffix("\n"))


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _clipped(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    left = len(text) - LONGEST
    return f"{text[: LONGEST // 2]} ... ({left:,} characters more) ... {text[-LONGEST // 2 :]}"


def shown_row(
    policy: DiffusionPolicy, written: Written, objective: MaskedDenoising, where: str, generator: torch.Generator
) -> RenderableType:
    """A row part by part, and once more under a draw of its objective's noise.

    Args:
        where: names the row.
    """
    ids, padding = written.canvas.ids[0], padding_of(written, policy)
    kinds = ["unread" if not read else "context" for read in written.canvas.attention_mask[0].tolist()]
    for place in written.trained.nonzero().flatten().tolist():
        kinds[place] = "padding" if padding[place] else "trained"
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    place = 0
    for kind, run in groupby(kinds):
        count = len(list(run))
        text = _clipped(text_of(policy, ids[place : place + count].tolist()))
        grid.add_row(Text(kind, STYLES[kind]), Text(text, STYLES[kind]))
        place += count
    drawn = objective.hide(written.trained, written.marks, written.codes, generator=generator)
    grid.add_row(Text("noised"), _noised(policy, ids, written.trained & ~padding, drawn.hidden))
    trained, hidden = int(written.trained.sum()), int(drawn.hidden.sum())
    more = f" ({int(padding.sum()):,} of them padding)" if bool(padding.any()) else ""
    title = Text(f"{visible(where)}, {written.canvas.task}: {len(ids):,} positions, {trained:,} trained{more}", "bold")
    draw = Text(f"mask ratio {drawn.ratio:.3f}: {hidden:,} of {trained:,} trained tokens hidden")
    if bool(padding.any()):
        draw.append(f", {int((drawn.hidden & padding).sum()):,} of them padding")
    if bool((drawn.target & ~drawn.hidden).any()):
        draw.append(f", {_many(int((drawn.target & ~drawn.hidden).sum()), 'visible mark')} scored beside them")
    grid.add_row("", draw)
    return Group(title, Padding(grid, (0, 0, 0, 2)))


def _noised(policy: DiffusionPolicy, ids: Tensor, answer: Tensor, hidden: Tensor) -> Text:
    """The tokens of ``answer [L]``, those that are hidden as ``[_]``."""
    text, pieces = Text(), list(zip(ids[answer].tolist(), hidden[answer].tolist(), strict=True))
    if answer.sum() and policy.codebook_size:
        codes = policy.token_space("t2i")
        pictured = [own for own in pieces if codes.start <= own[0] < codes.stop]
        pieces = [own for own in pieces if not codes.start <= own[0] < codes.stop]
    else:
        pictured = []
    for covered, run in groupby(pieces, lambda own: own[1]):
        own = [token for token, _ in run]
        if covered:
            text.append("[_]" if len(own) == 1 else f"[_ x {len(own):,}]", HIDDEN)
        else:
            text.append(text_of(policy, own), STYLES["trained"])
    if len(text) > LONGEST:
        text = Text.assemble(
            text[: LONGEST // 2], f" ... ({len(text) - LONGEST:,} characters more) ... ", text[-LONGEST // 2 :]
        )
    if pictured:
        covered = sum(own for _, own in pictured)
        text.append(f"[{_many(len(pictured), 'code')}, {covered:,} hidden]", STYLES["trained"])
    return text
