"""The wheel in an environment of its own, and commands that are run with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import ROOT


LIMIT = 1100
"""Seconds for one command."""

FORKED = """
import gc, json, os, sys
import unigrpo.runs.check, unigrpo.runs.sft, unigrpo.runs.train, unigrpo.toy.benchmark.command
from unigrpo.runs.cli import main

gc.collect()
gc.freeze()
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        for number, path in enumerate((os.devnull, asked["output"], asked["output"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
        os.chdir(asked["folder"])
        sys.argv[1:] = asked["words"]
        status = main()
        sys.stdout.flush()
        os._exit(status)  # What was imported is not taken down once more for each command.
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""A process that has imported everything, and is forked for each command: seconds of imports are paid once."""


def install_wheel(folder: Path) -> Path:
    """The programs of an environment in ``folder`` with the wheel and the packages of this one, but without this checkout."""
    source = folder / "source"
    unwanted = shutil.ignore_patterns(
        ".git", ".*cache*", "__pycache__", "runs", "build", "dist", "*.egg-info", ".venv*", "tests"
    )
    # Only the folder of runs at the top is a run's: a room has that name too.
    keep = lambda directory, names: unwanted(directory, names) - ({"runs"} if Path(directory) != ROOT else set())  # noqa: E731
    shutil.copytree(ROOT, source, symlinks=True, ignore=keep)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    run([*pip, "wheel", "--no-deps", "-w", str(folder), str(source)], folder)
    (wheel,) = folder.glob("*.whl")
    run([sys.executable, "-m", "venv", "--without-pip", "venv"], folder)
    python = folder / "venv" / "bin" / "python"
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "parent.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], folder)
    shutil.rmtree(source)
    return python.parent


def run(command: list[str], folder: Path) -> str:
    """What a command prints, in a folder that Python has not been told of."""
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-3000:])
    return done.stdout


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@contextmanager
def forking(programs: Path) -> Iterator[Callable[[list[str], Path], str]]:
    """``unigrpo`` of an environment as ``run(words, folder)``, which returns what it prints, of both kinds."""
    start = [str(programs / "python"), "-P", "-c", FORKED]
    with subprocess.Popen(
        start, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        commands, statuses = server.stdin, server.stdout

        def forked(words: list[str], folder: Path) -> str:
            output = folder / "output.txt"
            output.unlink(missing_ok=True)
            print(
                json.dumps({"words": words, "folder": str(folder), "output": str(output)}), file=commands, flush=True
            )
            status = statuses.readline()
            said = output.read_text() if output.exists() else ""
            assert status == "0\n", (words, status, said[-3000:])
            return said

        yield forked
