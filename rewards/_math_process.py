"""The parent's side of the math worker: start it, ask it, stop it."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from enum import Enum
from pathlib import Path


START_SECONDS = 120.0
"""How long the worker may take to import math-verify, on a cold and busy file system."""

_SCRIPT = Path(__file__).with_name("_math_worker.py")


class Verdict(Enum):
    """What a comparison says. ``GOLD_UNREADABLE`` and ``GOLD_EXHAUSTED`` say nothing about the prediction."""

    EQUAL = "equal"
    DIFFERENT = "different"
    EXHAUSTED = "the prediction used up its time or memory"
    GOLD_UNREADABLE = "the gold cannot be parsed"
    GOLD_EXHAUSTED = "the gold used up its time or memory"


class MathProcess:
    """A worker process that is started when it is first needed and again after it was lost.

    Threads take turns. A forked process starts its own worker. The worker goes with this process: killed at exit, and
    when this process is killed it ends by itself, at once or at the end of the bound of what it is doing, a start included.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._buffer = b""

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        return self._process.pid if self._process else None

    def compare(self, gold: str, prediction: str, seconds: float) -> Verdict:
        """Compares two LaTeX expressions in at most ``seconds``, not counting a start of the worker.

        Raises:
            RuntimeError: the worker does not start.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            try:
                return self._ask(gold, prediction, seconds)
            except BaseException:
                # An interrupted exchange leaves a reply in the pipe that would answer the next question.
                self.stop()
                raise

    def stop(self) -> None:
        """Ends the worker and waits for it; the next comparison starts another."""
        process, self._process, self._buffer = self._process, None, b""
        if process is not None:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def forget(self) -> None:
        """In a forked process: lets go of the parent's worker, whose pipes must not stay open here."""
        process, self._process, self._buffer = self._process, None, b""
        self._lock = threading.Lock()  # The old one may have been held by a thread that does not exist here.
        if process is not None:
            process.stdin.close()
            process.stdout.close()

    def _start(self) -> None:
        self.stop()
        try:
            # -P keeps this package's folder, which has a math.py, off the worker's path.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT), str(START_SECONDS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
            os.set_blocking(self._process.stdin.fileno(), False)
            reply = self._receive(time.monotonic() + START_SECONDS)
        except BaseException as error:
            self.stop()
            if isinstance(error, Exception):
                raise _start_error(f"{type(error).__name__}: {error}") from error
            raise
        if "error" in reply:
            self.stop()
            raise _start_error(reply["error"])

    def _ask(self, gold: str, prediction: str, seconds: float) -> Verdict:
        deadline = time.monotonic() + seconds
        lost = Verdict.GOLD_EXHAUSTED
        try:
            request = {"gold": gold, "prediction": prediction, "seconds": seconds}
            self._send(json.dumps(request).encode() + b"\n", deadline)
            if not self._receive(deadline)["gold"]:
                return Verdict.GOLD_UNREADABLE
            lost = Verdict.EXHAUSTED
            return Verdict.EQUAL if self._receive(deadline)["equal"] else Verdict.DIFFERENT
        except (TimeoutError, EOFError, BrokenPipeError):
            self.stop()
            return lost

    def _send(self, line: bytes, deadline: float) -> None:
        """Writes to a worker that may have stopped reading; TimeoutError past the deadline."""
        poller = select.poll()
        poller.register(self._process.stdin, select.POLLOUT)
        while line:
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                raise TimeoutError("the math worker does not read")
            line = line[self._process.stdin.write(line) or 0 :]

    def _receive(self, deadline: float) -> dict:
        """The next reply; TimeoutError past the deadline, EOFError if the worker died."""
        poller = select.poll()
        poller.register(self._process.stdout, select.POLLIN)
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                raise TimeoutError("the math worker did not answer in time")
            chunk = os.read(self._process.stdout.fileno(), 65536)
            if not chunk:
                raise EOFError("the math worker ended")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)


def _start_error(reason: str) -> RuntimeError:
    return RuntimeError(
        f"the process of math_correctness does not start ({reason}). It runs {sys.executable!r} with math-verify: "
        'check that `pip install "math-verify>=0.9,<1"` has been done for that interpreter and that '
        "`python -c 'import math_verify'` works."
    )


WORKER = MathProcess()
"""The worker of this process."""

atexit.register(WORKER.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WORKER.forget)
