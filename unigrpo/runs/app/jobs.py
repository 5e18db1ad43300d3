"""One job at a time, first come, first served; what it shows meanwhile, and how it is stopped."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from ...terminal import say


MOST_WAITING = 16
"""Jobs that may wait. Each holds a thread of the server."""


class Stopped(Exception):
    """The job was stopped; what it has shown so far stays."""


class Waiting(int):
    """The jobs before this one."""


class Job:
    """What one visitor asked for."""

    def __init__(self, owner: str | None) -> None:
        self.owner, self.stopped = owner, threading.Event()
        self.error: Exception | None = None
        self._changed, self._latest, self._ended = threading.Condition(), list[Any](), False

    def show(self, frame: Any) -> None:
        """Hands a frame to the page. One that the page has not fetched yet is replaced: a slow page holds up no sampler.

        Raises:
            Stopped: the job is to end here.
        """
        with self._changed:
            self._latest = [frame]
            self._changed.notify_all()
        if self.stopped.is_set():
            raise Stopped

    def frames(self) -> Iterator[Any]:
        """The frames as they are shown, the last one always."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._latest or self._ended)
                found, self._latest = self._latest, []
            if not found:
                return
            yield found[0]

    def work(self, task: Callable[[Job], None]) -> None:
        """Does the task; ``error`` is what went wrong."""
        try:
            task(self)
        except Exception as error:
            self.error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Jobs:
    """The line of jobs in front of one policy."""

    def __init__(self) -> None:
        self._moved, self._line = threading.Condition(), list[Job]()

    def run(self, owner: str | None, task: Callable[[Job], None]) -> Iterator[Any]:
        """``Waiting`` while others are before it, then each frame that ``task(job)`` gives to ``job.show``.

        A generator that is closed before its end stops its job, and takes it out of the line.

        Raises:
            Stopped: it was stopped, while it waited or while it ran.
            ValueError: too many jobs wait.
            Exception: what ``task`` raised.
        """
        job = Job(owner)
        with self._moved:
            if len(self._line) > MOST_WAITING:
                raise ValueError(f"{MOST_WAITING} jobs wait already: try again in a moment")
            self._line.append(job)
        worker = threading.Thread(target=job.work, args=(task,), daemon=True)
        try:
            yield from self._wait(job)
            worker.start()
            yield from job.frames()
            if job.error is not None:
                raise job.error
        finally:
            job.stopped.set()
            if worker.ident is not None:
                worker.join()
            with self._moved:
                self._line.remove(job)
                self._moved.notify_all()

    def stop(self, owner: str | None) -> bool:
        """Stops the jobs of ``owner``, waiting ones too; whether there was one."""
        with self._moved:
            own = [job for job in self._line if job.owner == owner]
            for job in own:
                job.stopped.set()
            self._moved.notify_all()
        return bool(own)

    def _wait(self, job: Job) -> Iterator[Waiting]:
        """The place in the line, each time that it changes, until it is the first."""
        known = None
        while known != 0:
            with self._moved:
                while not job.stopped.is_set() and self._line.index(job) == known:
                    self._moved.wait()
                known = self._line.index(job)
            if job.stopped.is_set():
                raise Stopped
            if known:
                yield Waiting(known)


def sentence(error: BaseException) -> str:
    """What went wrong, in a sentence; where it is nobody's mistake the terminal has the whole of it."""
    if isinstance(error, ValueError | OSError):
        return str(error)
    if "out of memory" in str(error).lower():
        return "The memory of the device ran out: lower the length, or close what else uses it."
    say("".join(traceback.format_exception(error)), error=True)
    first = (str(error).splitlines() or [""])[0]
    return f"No answer could be given ({type(error).__name__}: {first}); the terminal of `unigrpo app` has the whole of it."
