"""Calls that end: functions and coroutines of others, bounded in time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import torch

from ..errors import Overdue
from ..threads import in_own_loop, in_thread, result_of


GRACE = 1.0
"""Seconds past the bound of coroutines after which their loop counts as blocked."""


def outcome_of(call: Callable[[], Any], seconds: float | None) -> Any:
    """``call()`` in at most ``seconds``, None = without a bound; ``KeyboardInterrupt`` and ``SystemExit`` pass.

    Returns its value or the exception that it ended with, as ``asyncio.gather`` does with ``return_exceptions``; ``Overdue``
    for one that did not end.

    A bounded call runs in a daemon thread: one that is overdue is left behind there, and goes on by itself. No thread can be
    ended from outside.
    """
    prepare = _as_here()

    def outcome() -> Any:
        prepare()
        try:
            return call()
        except (Exception, asyncio.CancelledError) as error:
            return error

    try:
        return outcome() if seconds is None else result_of(in_thread(outcome), seconds=seconds)
    except Overdue as error:
        return error


def outcome_later(
    call: Callable[[], Any], seconds: float | None, awaited: Callable[[Any], Coroutine] | None = None
) -> Future:
    """What ``outcome_of`` returns, in the background; of an awaitable what ``awaited`` makes of it, bounded once more."""
    prepare = _as_here()

    def outcome() -> Any:
        prepare()
        found = outcome_of(call, seconds)
        if awaited is None or not inspect.isawaitable(found):
            return found
        return outcomes_together([awaited(found)], seconds)[0]

    return in_thread(outcome)


def outcomes_together(awaitables: list, seconds: float | None) -> list[Any]:
    """What each of ``awaitables`` comes to, as ``outcome_of`` returns it, run concurrently and each bounded by ``seconds``, None = without a bound.

    They share an event loop of their own in a thread of its own, so that a notebook's loop is left alone. One that is
    overdue is cancelled, and left behind if it does not heed that; the others keep their results. One that blocks the
    loop holds the others up, and takes those that have not ended with it.
    """
    if not awaitables:
        return []
    outcomes: list[Any] = [Overdue() for _ in awaitables]

    async def one(place: int) -> None:
        try:
            outcomes[place] = await awaitables[place]
        except (Exception, asyncio.CancelledError) as error:
            outcomes[place] = error
        except (KeyboardInterrupt, SystemExit) as error:
            # As it is, it would tear down the loop.
            raise _Stop from error

    async def all_of_them() -> list[Any]:
        tasks = [asyncio.ensure_future(one(place)) for place in range(len(awaitables))]
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            if stop := task.exception():
                raise stop.__cause__
        # As they are now: what is overdue is about to be cancelled.
        return list(outcomes)

    try:
        return in_own_loop(all_of_them(), None if seconds is None else seconds + GRACE, _as_here())
    except Overdue:
        return list(outcomes)


class _Stop(Exception):
    """Somebody asks to stop."""


def _as_here() -> Callable[[], None]:
    """Gives another thread what a new one would not have of this one: the current GPU, and whether gradients are on."""
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    gradients = torch.is_grad_enabled()

    def prepare() -> None:
        if device is not None:
            torch.cuda.set_device(device)
        torch.set_grad_enabled(gradients)

    return prepare
