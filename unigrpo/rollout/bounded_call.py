"""Calls that end: functions and coroutines of others, bounded in time."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from ..errors import Overdue


GRACE = 1.0
"""Seconds that an overdue call gets to clean up after itself, and between two attempts to interrupt it."""


def outcome_of(call: Callable[[], Any], seconds: float | None) -> Any:
    """``call()`` in at most about ``seconds``, None = without a bound; ``KeyboardInterrupt`` and ``SystemExit`` pass.

    Returns its value or the exception that it ended with, as ``asyncio.gather`` does with ``return_exceptions``; ``Overdue``
    for one that did not end.

    In the main thread of a POSIX system the call is interrupted where it stands, as by Ctrl-C, and cleans up after
    itself. The signal is SIGURG, which little else uses (the Go runtime does) and whose default is to be ignored: SIGALRM
    and its timer stay the call's own (math-verify, for one, sets them). Elsewhere the call runs in a thread, which is left behind.
    A call that is deep in compiled code ends when that comes back to Python; a loop that catches ``BaseException`` around
    everything does not end.
    """
    try:
        if seconds is None:
            return call()
        in_main = threading.current_thread() is threading.main_thread()
        interrupts = in_main and hasattr(signal, "SIGURG") and hasattr(signal, "pthread_kill")
        return (_interrupted if interrupts else _left_behind)(call, seconds)
    except (Exception, Overdue, asyncio.CancelledError) as error:
        return error


def _interrupted(call: Callable[[], Any], seconds: float) -> Any:
    finished, deadline, fired = threading.Event(), time.monotonic() + seconds, False

    def interrupt(*_: Any) -> None:
        nonlocal fired
        if not finished.is_set() and time.monotonic() >= deadline:
            fired = True
            raise Overdue

    def watch() -> None:
        pause = seconds
        while not finished.wait(pause):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGURG)
            pause = GRACE

    previous = signal.signal(signal.SIGURG, interrupt)
    watchdog = threading.Thread(target=watch, name="reward_timeout", daemon=True)
    try:
        watchdog.start()
        try:
            value = call()
        finally:
            finished.set()
    finally:
        # Once more: the interruption may have come just before.
        finished.set()
        watchdog.join()
        signal.signal(signal.SIGURG, signal.SIG_DFL if previous is None else previous)
    if fired:
        # Whatever swallowed the interruption did not compute what it returned.
        raise Overdue
    return value


def _left_behind(call: Callable[[], Any], seconds: float) -> Any:
    ended: Future = Future()
    _in_thread(call, ended)
    if not _ends(ended, seconds):
        raise Overdue
    return ended.result()


def _ends(future: Future, seconds: float | None) -> bool:
    """Whether ``future`` is done within ``seconds``; ``Future.result`` cannot tell its own TimeoutError from the call's."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    return done.wait(seconds)


def _in_thread(call: Callable[[], Any], future: Future) -> None:
    """``future`` gets what ``call()`` comes to, in a daemon thread: a process does not wait for it when it ends.

    The thread has this one's context and, which a new thread would not have, its current GPU.
    """
    context = contextvars.copy_context()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def work() -> None:
        """The thread's own part: whatever happens, the future ends."""
        if not future.set_running_or_notify_cancel():
            return
        try:
            if device is not None:
                torch.cuda.set_device(device)
            value = context.run(call)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)

    threading.Thread(target=work, name="reward", daemon=True).start()


class _DaemonThreads(ThreadPoolExecutor):
    """What ``asyncio.to_thread`` runs on. A process waits for the threads of a usual pool when it ends."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)  # Its own threads are never started.
        self.places = threading.Semaphore(min(32, (os.cpu_count() or 1) + 4))

    def submit(self, function: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """As the pool's, but each call in a daemon thread of its own, as many at once as the pool would run."""

        def in_turn() -> Any:
            with self.places:
                return function(*args, **kwargs)

        future: Future = Future()
        _in_thread(in_turn, future)
        return future


def outcomes_together(awaitables: list, seconds: float | None) -> list[Any]:
    """What each of ``awaitables`` comes to, as ``outcome_of`` returns it, run concurrently and each bounded by ``seconds``, None = without a bound.

    They share an event loop of their own in a thread of its own, so that a notebook's loop is left alone. One that is
    overdue is cancelled, and left behind if it does not heed that; the others keep their results. One that blocks the
    loop holds the others up, and takes those that have not ended with it.
    """
    if not awaitables:
        return []
    together = _Together(awaitables, seconds)
    ended: Future = Future()
    try:
        _in_thread(together.run, ended)
        if _ends(ended, None if seconds is None else seconds + 4 * GRACE):
            ended.result()
    except BaseException:
        together.give_up()
        raise
    return list(together.outcomes)


class _Together:
    """Awaitables on an event loop of their own."""

    def __init__(self, awaitables: list, seconds: float | None) -> None:
        self.awaitables, self.seconds, self.late = awaitables, seconds, False
        self.outcomes = [Overdue() for _ in awaitables]
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(_DaemonThreads())

    def run(self) -> None:
        """Runs them all to their ends or bounds, in the thread that the loop belongs to."""
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._all())
        finally:
            self.late = True
            self.loop.run_until_complete(self._clean_up())
            asyncio.set_event_loop(None)
            self.loop.close()

    def give_up(self) -> None:
        """Cancels everything, from another thread; waits for nothing."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(self.loop)])

    async def _all(self) -> None:
        tasks = [asyncio.ensure_future(self._one(place)) for place in range(len(self.awaitables))]
        await asyncio.wait(tasks, timeout=self.seconds)

    async def _clean_up(self) -> None:
        """Ends what is overdue, and what was started and not awaited."""
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=GRACE)
        await asyncio.wait([asyncio.ensure_future(self.loop.shutdown_asyncgens())], timeout=GRACE)

    async def _one(self, place: int) -> None:
        try:
            outcome = await self.awaitables[place]
        except (Exception, asyncio.CancelledError) as error:
            outcome = error
        if not self.late:
            self.outcomes[place] = outcome
