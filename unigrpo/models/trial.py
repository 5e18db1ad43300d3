"""What comes from anywhere and may take for ever, tried in a process that can be ended before it is done here."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


MEMORY = 2**30
"""Bytes that it may take, where the system can say so."""

BOUNDED = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
except (ImportError, ValueError, OSError):
    pass
sys.path[:], given = json.load(sys.stdin)
"""


def taken_by(program: str, given: Any, seconds: float) -> str:
    """What ``program``, Python with ``given`` as JSON, takes too much of, in words: more than ``seconds`` or ``MEMORY``; "" for neither."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", BOUNDED + program, str(MEMORY)],
            input=json.dumps([sys.path, given]),
            text=True,
            capture_output=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return f"more than {seconds:g} s"
    return "" if done.returncode == 0 else f"more than {MEMORY / 2**20:.0f} MiB"
