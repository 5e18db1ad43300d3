"""An hour of training watched from outside, by .ci/slow; and that the watching would see a leak."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from .soak import slope, soak, watch


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_an_hour_leaves_nothing_behind(tmp_path):
    """Memory grows by less than 5 % an hour, handles and threads not at all; no child outlives the run."""
    found = soak(tmp_path, float(os.environ.get("UNIGRPO_SOAK_SECONDS", 3600)))
    print("soak:", found)
    assert found["steps"] > 100 and found["children_seen"] > 10 and found["orphans"] == 0
    assert found["memory_mb_an_hour"] < 0.05 * found["memory_mb"]
    assert found["handles_an_hour"] < 2 and found["threads_an_hour"] < 2


LEAKS = """
import os, subprocess, time
held, files = [], []
for _ in range(20):
    held.append(bytearray(b"x" * 2_000_000)); files.append(open(os.devnull)); time.sleep(0.05)
subprocess.Popen(["sleep", "30"])
time.sleep(0.3)
"""


def test_leaks_are_seen(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", LEAKS])
    rows, descendants = watch(psutil.Process(child.pid), tmp_path / "seen.csv", every=0.03)
    child.wait()
    left = [own for own in descendants if own.is_running()]
    try:
        assert len(left) == 1
        assert slope(rows, "memory_mb") > 3600 * 5, "20 MB a second, or on a slow machine some"
        assert slope(rows, "handles") > 3600 * 2
    finally:
        for own in left:
            own.kill()
    flat = [{"seconds": float(second), "memory_mb": 500.0 + (second % 7)} for second in range(1000)]
    assert abs(slope(flat, "memory_mb")) < 5
