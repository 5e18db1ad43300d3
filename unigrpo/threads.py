"""Work in daemon threads: nobody has to wait for it, neither who asked for it nor a process that ends."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

from .errors import Overdue


def in_thread(call: Callable[[], Any]) -> Future:
    """What ``call()`` comes to, in a daemon thread with this one's context."""
    future: Future = Future()
    context = contextvars.copy_context()

    def work() -> None:
        """The thread's own part: whatever happens, the future ends."""
        if not future.set_running_or_notify_cancel():
            return
        try:
            value = context.run(call)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)

    threading.Thread(target=work, name="unigrpo", daemon=True).start()
    return future


def result_of(*futures: Future, seconds: float | None) -> Any:
    """The result of the first of ``futures`` that is done, None = without a bound.

    Raises:
        Overdue: none is done within ``seconds``.
    """
    wait(futures, seconds, FIRST_COMPLETED)
    for future in futures:
        if future.done():
            return future.result()
    raise Overdue


def in_own_loop(main: Coroutine, seconds: float | None = None, prepare: Callable[[], Any] = lambda: None) -> Any:
    """What ``main`` returns or raises, on an event loop of its own in a thread of its own.

    The caller's thread may have a loop that runs, as in a notebook. What ``main`` leaves running is cancelled, and not
    waited for; so is all of it when the caller is interrupted.

    Args:
        seconds: bound from outside, for a loop that something blocks.
        prepare: called first in each thread that works for the loop.

    Raises:
        Overdue: ``main`` has not ended within ``seconds``.
    """
    ended: Future = Future()
    loop = asyncio.new_event_loop()
    loop.set_default_executor(_DaemonThreads(prepare))

    async def delivered() -> None:
        try:
            value = await main
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result(value)

    task = loop.create_task(delivered())

    def work() -> None:
        prepare()
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.get_loop().run_until_complete(task)

    try:
        return result_of(ended, in_thread(work), seconds=seconds)
    except BaseException:
        with suppress(RuntimeError):  # The loop may be closed already.
            loop.call_soon_threadsafe(task.cancel)
        raise


class _DaemonThreads(ThreadPoolExecutor):
    """What ``asyncio.to_thread`` and the resolver of names run on. A process waits for the threads of a usual pool."""

    def __init__(self, prepare: Callable[[], Any]) -> None:
        super().__init__(max_workers=1)  # Its own threads are never started.
        self.prepare, self.places = prepare, threading.Semaphore(min(32, (os.cpu_count() or 1) + 4))

    def submit(self, function: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """As the pool's, but each call in a daemon thread of its own, as many at once as the pool would run."""

        def in_turn() -> Any:
            with self.places:
                self.prepare()
                return function(*args, **kwargs)

        return in_thread(in_turn)
