"""The process that scores answers to tasks of reasoning-gym. Run by path; imports nothing of this package.

It reads one JSON value, ``{"seconds": ..., "memory": ..., "rows": [[source, answer], ...]}``, and writes another, ``{"scores":
[...]}`` or ``{"error": text}``. Some scorers evaluate the answer as Python: each answer is scored in a child of its own, which
has the bounds of ``_guard.py``. A score is a number, or a text that says why there is none: ``changed`` where
the question is not the one that was asked.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import select
import signal
import sys
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path


def main() -> None:
    """One request."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Whatever libraries print goes nowhere.
    request = json.load(sys.stdin)
    try:
        scores = _scores(request)
    except Exception as error:
        json.dump({"error": f"{type(error).__name__}: {error}"}, channel)
    else:
        json.dump({"scores": scores}, channel)


def _scores(request: dict) -> list:
    from reasoning_gym import create_dataset

    guard, datasets, scores = _guard(), {}, []
    for source, answer in request["rows"]:
        key = json.dumps({name: source[name] for name in ("task", "seed", "size")})
        if key not in datasets:
            datasets[key] = create_dataset(source["task"], seed=source["seed"], size=source["size"])
        random.seed(0)  # A few tasks draw from it too: as the questions were made.
        entry = datasets[key][source["index"]]
        if zlib.crc32(entry["question"].encode()) != source["crc32"]:
            scores.append("changed")
            continue
        score = partial(datasets[key].score_answer, answer, entry)
        scores.append(_in_child(guard, score, request["seconds"], request["memory"]))
    return scores


def _guard():
    spec = importlib.util.spec_from_file_location("_guard", Path(__file__).with_name("_guard.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _in_child(guard, score: Callable[[], float], seconds: float, memory: int) -> float | str:
    read, write = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        try:
            guard.guard(seconds, memory, parent)
            os.write(write, f"{float(score())!r}\n".encode())
        finally:
            os._exit(1)
    os.close(write)
    try:
        return _reply(read, time.monotonic() + seconds)
    finally:
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(read)
        if status == guard.UNGUARDED:
            raise RuntimeError("this system does not let a process take a seccomp filter, so nothing was scored")


def _reply(read: int, deadline: float) -> float | str:
    """The number on a line of a pipe."""
    line = b""
    while not line.endswith(b"\n"):
        left = max(0.0, deadline - time.monotonic())
        if not select.select([read], [], [], left)[0]:
            return "overdue"
        chunk = os.read(read, 64)
        line += chunk
        if not chunk or len(line) > 64:
            return "failed"
    return float(line)


if __name__ == "__main__":
    main()
