"""Mutants played on a copy of the tree, one after the other, by one process at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .mutant import Mutant


LEFT_OUT = (".git", "__pycache__", ".*_cache", ".venv*", "*.egg-info", "runs", "build", "dist", ".hypothesis")
"""What the copy does without."""

PRELOADED = ["pytest", "hypothesis", "jaxtyping", "beartype", "torch", "safetensors.torch", "PIL.Image", "datasets"]
PRELOADED += ["transformers.trainer", "transformers.modeling_utils", "peft", "accelerate", "trl"]
"""What the tests import of others, read once for all mutants."""

OUTPUT = "output.txt"

PATIENCE, GRACE = 4.0, 60.0
"""A mutant may take ``PATIENCE`` times as long as the tests without it, and ``GRACE`` seconds: then it hangs."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What pytest made of some files.

    Attributes:
        kind: "passed", "failed", or "late" where it was ended by time.
        by: the test that failed.
        seconds: wall time.
    """

    kind: str
    by: str
    seconds: float


def copied(root: Path, place: Path) -> Path:
    """A copy of the tree ``root`` in the empty folder ``place``."""
    (place / "tmp").mkdir(parents=True)
    return Path(shutil.copytree(root, place / "tree", symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT)))


def apart(function: Callable, *arguments: Any, limit: float | None = None) -> int | None:
    """The status of a process that calls ``function``, None if it was ended after ``limit`` seconds.

    It is forked from one that has read ``PRELOADED`` and nothing of this project. What it leaves behind ends with it.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    process = server.Process(target=_leading, args=(function, *arguments))
    process.start()
    try:
        process.join(limit)
    finally:
        code = process.exitcode
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return code


def _leading(function: Callable, *arguments: Any) -> None:
    """Calls ``function`` as the leader of a group of processes."""
    os.setsid()
    sys.exit(function(*arguments))


def check_all(mutants: list[Mutant], root: Path) -> None:
    """``Mutant.check`` of each. It imports the library: to be called ``apart``, before any mutant is planted."""
    for own in mutants:
        own.check(root)


def _pytest(tree: Path, targets: list[str], bytecode: bool) -> int:
    """Runs pytest in ``tree`` as if nothing of another tree had ever been imported; its output lies beside the tree."""
    output = os.open(tree.parent / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    for name in [own for own in sys.modules if own.partition(".")[0] in ("tests", "unigrpo")]:
        del sys.modules[name]
    sys.path[:] = [str(tree), *sys.path]
    sys.dont_write_bytecode, tempfile.tempdir = not bytecode, None
    os.environ.update(PYTHONPATH=str(tree), TMPDIR=str(tree.parent / "tmp"), COLUMNS="400")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "" if bytecode else "1"
    os.chdir(tree)
    import pytest

    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "", *(f"tests/{own}" for own in targets)])
    origin = str(Path(sys.modules["unigrpo"].__file__).parent) if "unigrpo" in sys.modules else "nowhere"
    print(f"unigrpo was imported from {origin}", flush=True)
    return int(code) if origin == str(tree / "unigrpo") else 3


def pytest_in(tree: Path, targets: list[str], limit: float | None = None, bytecode: bool = False) -> Outcome:
    """Runs ``targets`` below ``tests/`` of ``tree`` in their order until the first failure.

    Args:
        limit: seconds after which it is ended, with all processes that it started.
        bytecode: whether compiled files are kept; those of a mutant would outlive it.

    Raises:
        RuntimeError: pytest neither passed nor failed, what failed was an import, or ``unigrpo`` was not the tree's.
    """
    started = time.monotonic()
    code = apart(_pytest, tree, targets, bytecode, limit=limit)
    seconds, text = time.monotonic() - started, (tree.parent / OUTPUT).read_text(errors="replace")
    shutil.rmtree(tree.parent / "tmp", ignore_errors=True)
    (tree.parent / "tmp").mkdir()
    if code is None:
        return Outcome(kind="late", by="", seconds=seconds)
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(.+?)( - .*)?$", text, re.MULTILINE)
    no_import = failed is not None and re.search(r"(Import|ModuleNotFound)Error", failed[2] or "")
    if code not in (0, 1) or (failed is None) != (code == 0) or no_import:
        raise RuntimeError(f"pytest {' '.join(targets)} ended with {code}:\n{text[-3000:]}")
    return Outcome(kind="failed" if failed else "passed", by=failed[1] if failed else "", seconds=seconds)


def baseline(tree: Path, tests: str) -> float:
    """Seconds that ``tests`` take without any mutant; raises ``RuntimeError`` if one of them fails."""
    outcome = pytest_in(tree, [tests], bytecode=True)
    if outcome.kind != "passed":
        raise RuntimeError(f"tests/{tests} fails without any mutant, at {outcome.by}")
    return outcome.seconds


def play(tree: Path, mutant: Mutant, seconds: dict[str, float], room: bool = False) -> Outcome:
    """The outcome of a mutant's tests with the mutant planted in ``tree``, which is then as it was.

    Args:
        seconds: the ``baseline`` of each of its tests.
        room: what these files do not find, all tests of the room may.
    """
    file = tree / mutant.file
    text, stat = file.read_text(), file.stat()
    planted = mutant.planted(tree)
    limit = GRACE + PATIENCE * sum(seconds[own] for own in mutant.tests)
    try:
        file.write_text(planted)
        outcome = pytest_in(tree, list(mutant.tests), limit)
        if outcome.kind == "passed" and room:
            outcome = pytest_in(tree, [mutant.room])
    finally:
        file.write_text(text)
        # As old as its compiled file knows it.
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return outcome
