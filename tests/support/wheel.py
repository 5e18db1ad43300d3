"""The wheel in an environment of its own, and commands that are run with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from . import ROOT


LIMIT = 1100
"""Seconds for one command."""


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
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-3000:])
    return done.stdout
