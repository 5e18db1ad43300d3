"""Stop tokens: what counts of an answer, what stands behind it, and what is no longer computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..models import DiffusionPolicy
from ..types import Canvas, Rollout
from .require import first, require


def common_tokens(rollout: Rollout, count: int = 3) -> list[int]:
    """Tokens that leave a tail in as many answers as possible, when answers end at them; most common first."""
    rows = list(zip(rollout.canvas.ids, rollout.canvas.fill_mask, strict=True))
    tokens = rollout.canvas.ids[rollout.canvas.fill_mask].unique().tolist()
    # The last hole of a row leaves no tail.
    cuts = {token: sum(bool((ids[fill][:-1] == token).any()) for ids, fill in rows) for token in tokens}
    return sorted((token for token in tokens if cuts[token]), key=lambda token: -cuts[token])[:count]


def behind_stop(ids: Tensor, where: Tensor, policy: DiffusionPolicy) -> Tensor:
    """``[B, L]`` bool, the positions behind each row's first stop token among those ``where [B, L]`` marks."""
    stops = torch.isin(ids, torch.tensor(policy.stop_token_ids, device=ids.device)) & where
    return (stops.cumsum(dim=1) - stops.long()) > 0


def check_counts(rollout: Rollout, policy: DiffusionPolicy) -> None:
    """What counts ends with the first stop token, which counts itself."""
    fill = rollout.canvas.fill_mask
    behind = behind_stop(rollout.canvas.ids, fill, policy) & fill
    require(
        behind.any(),
        f"no answer ended although the stop tokens {policy.stop_token_ids} were written without them: a stop token is "
        "written like any other",
    )
    late, short = rollout.completion_mask & behind, fill & ~behind & ~rollout.completion_mask
    require(
        not late.any(),
        f"{int(late.sum())} positions behind a stop token count as answer, the first at {first(late) if late.any() else ''}: what "
        "counts ends with the first stop token. CanvasWriter.rollout() does that for its samplers",
    )
    require(
        not short.any(),
        f"{first(short) if short.any() else ''} does not count although it stands before the stop token, or is it",
    )


def check_tails(rollout: Rollout, policy: DiffusionPolicy) -> None:
    """Behind the first stop token stands padding, with step -1 and log-probability 0."""
    tail = behind_stop(rollout.canvas.ids, rollout.canvas.fill_mask, policy) & rollout.canvas.fill_mask
    for name, values, empty in (
        ("ids", rollout.canvas.ids, policy.pad_token_id),
        ("step_map", rollout.step_map, -1),
        ("sampling_logps", rollout.sampling_logps, 0),
    ):
        wrong = tail & (values != empty)
        require(
            not wrong.any(),
            f"{name} behind a stop token is {values[wrong][0].item() if wrong.any() else ''} at {first(wrong) if wrong.any() else ''} "
            f"and must be {empty}: the tail becomes padding (id {policy.pad_token_id}, step -1, log-probability 0). CanvasWriter "
            'does that with stop="first"',
        )


@contextmanager
def forwards_of(model: Any) -> Iterator[list[dict[str, Any]]]:
    """The keyword arguments of the model's forwards meanwhile, tensors copied."""
    seen: list[dict[str, Any]] = []

    def keep(_module, _arguments, kwargs) -> None:
        seen.append({key: own.clone() if isinstance(own, Tensor) else own for key, own in kwargs.items()})

    if not hasattr(model, "register_forward_pre_hook"):
        yield seen
        return
    hook = model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def check_tail_is_not_denoised(forwards: list[dict[str, Any]], canvas: Canvas, policy: DiffusionPolicy) -> None:
    """Once a stop token is visible, the model sees padding behind it, and is asked for nothing there."""
    for step, kwargs in enumerate(forwards):
        ids, select = kwargs.get("input_ids"), kwargs.get("select")
        if ids is None or ids.shape[1] != canvas.ids.shape[1]:
            continue
        if kwargs.get("guidance_scale") is not None:
            ids, select = ids.chunk(2)[0], None if select is None else select.chunk(2)[0]
        for row, own in enumerate(ids):
            fill = _holes_of(own, canvas)
            if fill is None:
                continue
            tail = behind_stop(own[None], fill[None] & (own != policy.mask_token_id), policy)[0] & fill
            shown = tail & (own != policy.pad_token_id)
            require(
                not shown.any(),
                f"forward {step} shows the model id {own[shown][:1].tolist()} behind a stop token of the canvas: once the stop token "
                f"is written, padding ({policy.pad_token_id}) stands behind it, as it will in training",
            )
            if select is not None:
                asked = torch.nn.functional.pad(select[row], (policy.logit_shift, 0))[: len(own)] & tail
                require(
                    not asked.any(),
                    f"forward {step} asks for {int(asked.sum())} tokens behind a stop token: the tail is not denoised any more",
                )


def _holes_of(ids: Tensor, canvas: Canvas) -> Tensor | None:
    """``fill_mask`` of the canvas's row whose prompt ``ids [L]`` holds; None for no such row, as of an unconditional twin."""
    same = ((ids == canvas.ids) | canvas.fill_mask).all(dim=1)
    return canvas.fill_mask[int(same.int().argmax())] if same.any() else None
