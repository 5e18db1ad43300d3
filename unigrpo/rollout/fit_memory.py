"""Rollout batches: how answers are cut into them, and what happens to a batch that does not fit into memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from ..types import Rollout


def in_batches(
    fill: Callable[[list[int], Callable[[int, int], None] | None], Rollout],
    lengths: Sequence[int],
    size: int,
    *,
    task: str,
    splits: bool = True,
    on_step: Callable[[int, int], None] | None = None,
    on_batch: Callable[[dict[int, Rollout]], None] | None = None,
) -> tuple[list[Rollout], int]:
    """One rollout (B = 1) an answer, in order, filled ``size`` at a time, and the size that fitted.

    Answers of similar length share a batch, the longest first: a size that fits them fits the others. A batch that runs out
    of memory is halved and filled again, with one warning that names the size in the end.

    Args:
        fill: ``fill(indices, on_step)``, the answers with these indices, made anew by every call: the same indices give the
            same tokens.
        lengths: real tokens of each answer's canvas.
        splits: False where a batch cannot be filled twice, because other processes wait in its forwards.
        on_step: progress, ``on_step(done, total)``; the total counts the steps of all batches.
        on_batch: gets the rollouts of a batch by their indices, as soon as it is filled.

    Raises:
        RuntimeError: out of memory with a single answer, or with ``splits=False``; the message names what to lower.
    """
    asked, waiting = min(size, len(lengths)), list(range(len(lengths)))
    size, steps, rollouts = asked, 0, {}
    while waiting:
        if size < len(waiting):
            waiting.sort(key=lambda index: lengths[index], reverse=True)
        batch = waiting[:size]
        progress = None if on_step is None else _Progress(on_step, steps, -(-len(waiting) // size))
        rollout, problem = _fill_if_it_fits(fill, batch, progress)
        if rollout is None:
            _check_can_split(len(batch), lengths[batch[0]], task, splits, problem)
            size = len(batch) // 2
            continue
        steps = 0 if progress is None else progress.done
        filled = {index: rollout.take(torch.tensor([place])) for place, index in enumerate(batch)}
        rollouts |= filled
        if on_batch is not None:
            on_batch(filled)
        waiting = waiting[size:]
    if size < asked:
        warnings.warn(
            f"a rollout of {asked} answers of task {task!r} did not fit into memory and was split: set "
            f"rollout_batch_size={size}, which fitted and is used from now on, to save the failed attempts"
        )
    return [rollouts[index] for index in range(len(lengths))], size


class _Progress:
    """A batch's steps as steps of all batches: ``before`` are done, ``left`` batches, this one included, take as many."""

    def __init__(self, on_step: Callable[[int, int], None], before: int, left: int) -> None:
        self.on_step, self.before, self.left, self.done = on_step, before, left, before

    def __call__(self, done: int, total: int) -> None:
        self.done = self.before + done
        self.on_step(self.done, self.before + total * self.left)


def _fill_if_it_fits(
    fill: Callable, batch: list[int], on_step: Callable[[int, int], None] | None
) -> tuple[Rollout | None, str]:
    """The batch's rollout, or None and why: memory ran out, and what the attempt held is free again."""
    try:
        return fill(batch, on_step), ""
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
            raise
        problem = (str(error) or type(error).__name__).splitlines()[0]
    # Only here, where the error and with it the frames of the attempt are gone, can their tensors be freed.
    clear_device_cache(garbage_collection=True)
    return None, problem


def _check_can_split(answers: int, length: int, task: str, splits: bool, problem: str) -> None:
    if answers == 1:
        raise RuntimeError(
            f"one answer of task {task!r} on a canvas of {length} tokens does not fit into memory, so no "
            f"rollout_batch_size helps: lower max_completion_length{' or image_size' if task != 'text' else ''}, or free "
            f"memory ({problem})"
        )
    if not splits:
        raise RuntimeError(
            f"a rollout of {answers} answers of task {task!r} did not fit into memory. It cannot be split here, because "
            f"other processes take part in each of its forwards: set rollout_batch_size={answers // 2} or less, or lower "
            f"max_completion_length ({problem})"
        )
