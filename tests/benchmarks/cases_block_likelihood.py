"""The likelihood of a model in blocks: all blocks in one pass over two copies, against a forward and a backward a block."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.models.decoder import A2DQwen3Policy
from unigrpo.types import Canvas

from ..support.tiny_decoders import decoder_tokenizer
from .bench import Bench, UpdateBatch, update_batch
from .cases_blocks import SIZE as BLOCK
from .cases_blocks import block_model
from .cases_update import agree, measured, vocabulary
from .measure import EXACT, Result, compared, interleave


ANSWERS = 4
"""Of each prompt."""


def block_policy(bench: Bench) -> tuple[Any, A2DQwen3Policy]:
    """A block-causal Qwen3 with random weights, of the bench's sizes, and its policy."""
    model, _ = block_model(bench)
    return model, A2DQwen3Policy(model.config, decoder_tokenizer())


def groups(bench: Bench) -> UpdateBatch:
    """The rows of an update, ``ANSWERS`` to each prompt."""
    batch = update_batch(bench, bench.sizes.update_rows, bench.sizes.update_length)
    first = torch.arange(len(batch.hidden)) // ANSWERS * ANSWERS
    canvas = batch.canvas
    return replace(batch, canvas=replace(canvas, ids=torch.where(canvas.fill_mask, canvas.ids, canvas.ids[first])))


def one_pass(model: Any, policy: A2DQwen3Policy, batch: UpdateBatch) -> Tensor:
    """Minus the mean of advantage times log p of what is hidden; its gradient is left on the weights."""
    logps = score_tokens(model, policy, batch.canvas, batch.hidden, batch.hidden).logps
    loss = -(batch.advantages[:, None] * logps).sum() / batch.hidden.sum()
    loss.backward()
    return loss.detach()


def block_by_block(model: Any, policy: A2DQwen3Policy, batch: UpdateBatch) -> Tensor:
    """The same of single copies that end with a block: what is before it is finished, and nothing is behind it."""
    blocks, total = policy.blocks(batch.canvas), torch.zeros((), device=batch.hidden.device)
    for own in blocks[batch.hidden].unique().tolist():
        end = int((blocks[0] <= own).sum())
        hidden = (batch.hidden & (blocks == own))[:, :end]
        canvas = _until(batch.canvas, end)
        request = {"select": hidden, "targets": canvas.ids[hidden], "token_space": canvas.token_space}
        logps = model(**policy.inputs(canvas, hidden), **request).logps
        rows = batch.advantages[:, None].expand_as(hidden)[hidden]
        loss = -(rows * logps).sum() / batch.hidden.sum()
        loss.backward()
        total += loss.detach()
    return total


def _until(canvas: Canvas, end: int) -> Canvas:
    own = {item.name: getattr(canvas, item.name) for item in fields(canvas)}
    return Canvas(**{name: value[:, :end] if isinstance(value, Tensor) else value for name, value in own.items()})


def block_likelihood(bench: Bench) -> list[Result]:
    """Values and gradients of a step, the vocabulary frozen, prompts computed too."""
    model, policy = block_policy(bench)
    batch = groups(bench)
    with vocabulary(model, trainable=False):
        timed = interleave(
            {
                "plain": lambda: measured(model, lambda: block_by_block(model, policy, batch)),
                "ours": lambda: measured(model, lambda: one_pass(model, policy, batch)),
            },
            bench.sizes.rounds,
        )
    checks = agree(timed["ours"].value, timed["plain"].value)
    note = f"plain: a forward and a backward for each block of {BLOCK}; {ANSWERS} answers of a prompt"
    return [compared("likelihood in blocks", EXACT, timed, checks=checks, note=note, goal=8, floor=5)]
