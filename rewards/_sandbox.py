"""The parent's side of code that runs under ``_guard.py``: start it, bound it, read what it says."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ._guard import ARCHITECTURES, UNGUARDED


_SCRIPT = Path(__file__).with_name("_guard.py")
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
"""All that the code sees of it. With one seed for hashes a program prints the same each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """``seconds`` by the clock, ``memory`` and ``output`` in bytes."""

    seconds: float
    memory: int
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a process wrote, and whether it ended by itself with status 0, or was ended for its time or its output."""

    output: str
    good: bool
    overdue: bool = False


def check_system() -> None:
    """Raises ``RuntimeError`` where code cannot be guarded."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        raise RuntimeError(
            f"code of answers runs under seccomp of Linux on {' or '.join(ARCHITECTURES)}, and this is {sys.platform} on "
            f"{platform.machine()}: score code_tests elsewhere, for instance behind the reward `remote`"
        )


def run_script(program: str, text: str, bounds: Bounds) -> Outcome:
    """Runs ``program`` with ``text`` as its standard input."""
    with tempfile.TemporaryFile() as stdin:
        stdin.write(text.encode(errors="replace"))
        stdin.seek(0)
        with _started("script", {"program": program}, bounds, stdin=stdin) as process:
            return _outcome(process, time.monotonic() + bounds.seconds, bounds.output)


def run_test(program: str, test: str, entry_point: str | None, bounds: Bounds) -> Outcome:
    """Runs ``test`` against the functions of ``program``; the output is ``passed``, ``failed`` or ``broken``."""
    calls, values = os.pipe(), os.pipe()
    answers = (calls[0], values[1])
    tests = (values[0], calls[1])
    deadline = time.monotonic() + bounds.seconds
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_started("answer", {"program": program}, bounds, pipes=answers))
            spec = {"test": test, "entry_point": entry_point}
            process = stack.enter_context(_started("test", spec, bounds, pipes=tests))
        finally:
            for end in (*calls, *values):
                os.close(end)
        return _outcome(process, deadline, bounds.output)


@contextlib.contextmanager
def _started(
    mode: str, spec: dict[str, Any], bounds: Bounds, stdin: IO | int = subprocess.DEVNULL, pipes: tuple[int, ...] = ()
) -> Iterator[subprocess.Popen]:
    """A guarded process, which is gone at the end of the block."""
    with tempfile.TemporaryFile("w+") as file:
        json.dump({**spec, "seconds": bounds.seconds, "memory": bounds.memory}, file)
        file.seek(0)
        words = [mode, file.fileno(), os.getpid(), *pipes]
        process = subprocess.Popen(
            # -S and the clean environment: nothing but the standard library; -P: nor this package's math.py.
            [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", str(_SCRIPT), *map(str, words)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(file.fileno(), *pipes),
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _outcome(process: subprocess.Popen, deadline: float, most: int) -> Outcome:
    """Reads a process's output until it ends, the deadline, or ``most`` bytes."""
    output, poller = b"", select.poll()
    poller.register(process.stdout, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            return Outcome(output="", good=False, overdue=True)
        chunk = os.read(process.stdout.fileno(), 65536)
        output += chunk
        if len(output) > most:
            return Outcome(output="", good=False)
        if not chunk:
            break
    try:
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return Outcome(output="", good=False, overdue=True)
    if status == UNGUARDED:
        raise RuntimeError("code_tests: this system does not let a process take a seccomp filter, so no code was run")
    return Outcome(output=output.decode(errors="replace"), good=status == 0)
