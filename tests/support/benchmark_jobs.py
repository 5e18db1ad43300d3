"""What the processes of ``test_benchmark.py`` do; it imports little, because every child imports it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def spell(path: Path, text: str) -> None:
    path.write_text(f"{text} {os.environ['OMP_NUM_THREADS']}")


def fail(path: Path) -> None:
    os._exit(3)


def linger(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(600)


if __name__ == "__main__":
    from unigrpo.toy.benchmark.pool import Job, run_jobs

    target = Path(sys.argv[1])
    run_jobs([Job("late", linger, (target,), target.with_suffix(".log"))], 1, 600.0, print, preload=False)
