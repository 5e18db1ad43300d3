"""``check_policy``: what a model family promises together with its model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from ..models import DiffusionPolicy
from ..samplers import Block, Emerge, LeftToRight, MaskGIT, SemiAutoregressive
from ..types import KINDS, SPANS, Rollout, is_picture
from .likelihood import (
    check_blocks_are_causal,
    check_draws,
    check_gradient,
    check_guidance,
    check_hidden_ids,
    check_kept_keys,
    check_padding,
    check_scores,
    check_visible_ids,
)
from .require import require
from .rollouts import Recorded, check_all_written, check_recorded_logps, check_rollout, streams


LENGTH = 8
"""Answer tokens."""

TEMPERATURE = 0.7

RECORDED = Recorded(
    temperature=TEMPERATURE,
    guidance=0.0,
    cure="inputs(canvas, hidden, noisy_ids) shows the model something else than what it saw when it wrote the answer",
)


def check_policy(
    policy: DiffusionPolicy,
    model: Any,
    rows: list[dict[str, Any]],
    *,
    task: str = "text",
    padding: int | None = None,
    block_length: int | None = None,
) -> None:
    """Everything that samplers, noise and likelihood rely on, of ``policy`` and its ``model`` together.

    Takes seconds on a tiny model with random weights in fp32, which is what it is meant for: a family's code is checked, not
    its weights. The model is left in eval mode.

    Args:
        rows: dataset rows of ``task`` with prompts of several lengths, three or more; of tasks whose
            prompt shows a picture with ``image_codes [N]`` and their rows and columns, ``image_grid``; for ``"picture"`` with ``thought_ids [8]``.
        padding: the id of padding in canvases of ``task`` where it is not ``policy.pad_token_id``.
        block_length: answer positions in a block, for models that see no later block and whose policy has no ``block_size``; None
            for bidirectional ones.

    Raises:
        AssertionError: one sentence: what is wrong, where, and what to look at.
    """
    model.eval()
    name = type(policy).__name__
    try:
        check_encode(policy, rows, task, padding)
        samplers: tuple[Callable[[float], Any], ...] = SAMPLERS_OF[KINDS.get(task, task)]
        if policy.block_size:
            # The block sampler writes at a mask id.
            samplers = BLOCKWISE if policy.mask_token_id is not None else (left_to_right,)
        rollouts = [sampled(policy, model, rows, task, sampler) for sampler in samplers]
        _check_likelihood(policy, model, rollouts[0], policy.block_size or block_length)
        for rollout in rollouts:
            check_recorded_logps(model, policy, rollout, streams(len(rows)), RECORDED)
    except AssertionError as error:
        raise AssertionError(f"{name}, task {task!r}: {error}") from error


def _check_likelihood(policy: DiffusionPolicy, model: Any, rollout: Rollout, block_length: int | None) -> None:
    check_scores(policy, model, rollout, TEMPERATURE)
    check_draws(policy, model, rollout, TEMPERATURE)
    check_guidance(policy, model, rollout, TEMPERATURE)
    if policy.supports_cache:
        check_kept_keys(policy, model, rollout, TEMPERATURE)
    if not policy.attends_padding:
        check_padding(policy, model, rollout, TEMPERATURE)
    check_hidden_ids(policy, model, rollout, TEMPERATURE)
    if block_length is None:
        check_visible_ids(policy, model, rollout, TEMPERATURE)
    else:
        check_blocks_are_causal(policy, model, rollout, TEMPERATURE, block_length)
    check_gradient(policy, model, rollout, TEMPERATURE)


def answer_length(policy: DiffusionPolicy, task: str) -> dict[str, Any]:
    """The arguments of ``policy.encode`` that leave ``LENGTH`` tokens to write."""
    drawn, written = policy.image_lengths(2, LENGTH // 2), {"max_completion_length": LENGTH}
    if task in SPANS["r2i"]:
        return {**drawn, **written}
    return drawn if is_picture(task) else written


def check_encode(policy: DiffusionPolicy, rows: list[dict], task: str, padding: int | None = None) -> None:
    """Exactly the answer is to be written, it holds the mask id, and the prompt does not depend on the other rows."""
    length = answer_length(policy, task)
    canvas = policy.encode(rows, task, **length)
    require(
        canvas.task == task and canvas.token_space == policy.token_space(task),
        f"encode gives a canvas of task {canvas.task!r} and {canvas.token_space}; token_space says {policy.token_space(task)}",
    )
    holes = canvas.fill_mask.sum(dim=1).tolist()
    require(holes == [LENGTH] * len(rows), f"encode(..., {length}) leaves {holes} positions to write in its rows")
    require(canvas.attention_mask[canvas.fill_mask].all(), "attention_mask is False at positions to write")
    mask = policy.mask_token_id
    if mask is not None:
        require(
            (canvas.ids[canvas.fill_mask] == mask).all(),
            f"encode leaves other ids than the mask id {mask} in fill_mask",
        )
        require(
            not canvas.token_space.contains(torch.tensor(mask)),
            f"the mask id {mask} lies in {canvas.token_space} and could be written: leave it out with exclude",
        )
    lengths = canvas.attention_mask.sum(dim=1)
    require(
        lengths.unique().numel() > 1,
        f"all rows have {int(lengths[0])} tokens: give check_policy prompts of several lengths",
    )
    padding = policy.pad_token_id if padding is None else padding
    found = canvas.ids[~canvas.attention_mask].unique().tolist()
    require(found == [padding], f"padding holds the ids {found}, not {padding}")
    for row, own in enumerate(rows):
        alone, real = policy.encode([own], task, **length), canvas.attention_mask[row]
        require(alone.attention_mask.all(), f"row {row} alone is padded: pad to the longest row of the batch")
        require(
            torch.equal(alone.ids[0], canvas.ids[row][real])
            and torch.equal(alone.fill_mask[0], canvas.fill_mask[row][real]),
            f"row {row} is encoded to other ids alone than beside longer rows",
        )


def sampled(
    policy: DiffusionPolicy,
    model: Any,
    rows: list[dict],
    task: str,
    sampler: Callable[[float], Any] | None = None,
) -> Rollout:
    """Answers to ``rows`` of full length, drawn; and checked as records, beside greedy ones that end at stop tokens.

    ``sampler`` makes one of a temperature.
    """
    canvas, endless = policy.encode(rows, task, **answer_length(policy, task)), copy.copy(policy)
    endless.stop_token_ids = ()
    for own, temperature in ((policy, 0.0), (endless, TEMPERATURE)):
        fill = (sampler or semi_autoregressive)(temperature)
        rollout = fill(model, own, canvas, generators=streams(len(rows)))
        check_rollout(rollout, canvas, own)
        empty = ~rollout.completion_mask.any(dim=1)
        require(not empty.any(), f"rows {empty.nonzero().flatten().tolist()} have no token that counts")
    check_all_written(rollout)
    return rollout


def semi_autoregressive(temperature: float) -> SemiAutoregressive:
    return SemiAutoregressive(steps=4, block_length=4, temperature=temperature)


def emerge(temperature: float) -> Emerge:
    return Emerge(steps=4, temperature=temperature, guidance_scale=0.0)


def maskgit(temperature: float) -> MaskGIT:
    return MaskGIT(steps=4, temperature=temperature, guidance_scale=0.0)


def left_to_right(temperature: float) -> LeftToRight:
    return LeftToRight(temperature=temperature)


def block(temperature: float) -> Block:
    return Block(steps=LENGTH, temperature=temperature)


SAMPLERS_OF = {**dict.fromkeys(("text", "mmu"), (semi_autoregressive,)), "t2i": (emerge, maskgit)}
"""What fills the canvases of a task, as a function of temperature."""

BLOCKWISE = (left_to_right, block)
"""The same for policies with a ``block_size``: what finishes each block before the next, wherever the first one begins."""
