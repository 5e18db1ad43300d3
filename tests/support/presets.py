"""Runs of each preset, small enough for a test."""

from __future__ import annotations


FREE = {"beta": None, "num_iterations": 2}
"""Two updates where the test's defaults would say so, every other key left to the preset."""


def preset(name: str, **changes) -> dict:
    return {"algorithm": name, **FREE, **({"num_iterations": 1} if name == "just_grpo" else {}), **changes}
