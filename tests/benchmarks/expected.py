"""What the plain implementation should take, so that a baseline that became slow or fast by accident is noticed.

Measured for these algorithms on a machine with two AVX-512 cores (AMD EPYC), mid model, fp32, one thread, warm allocator.
"""

from __future__ import annotations

from typing import Any

from .plain import Clock


MACHINE = "2-core AVX-512 machine"
TOLERANCE, POINTS = 0.3, 0.03
"""How far milliseconds, and shares of ``LARGE`` or more, may be from what is expected; and smaller shares, absolutely."""
LARGE = 0.1

EXPECTED_MS = {"text T=0": 990.0, "text T=1": 2075.0, "t2i": 5950.0 / 8, "update": 7740.0}
"""Text: a step of batch 4 and 192 positions. t2i: a step of two branches of 323. Update: batch 8, 256 positions, all
weights trained; old forward 1950, forward 1990, backward 3750.
"""

SHARES = {
    "text T=0": {"LM head": 0.60, "softmax and cast": 0.20, "argmax": 0.09, "attention": 0.04, "MLP": 0.06},
    "text T=1": {"LM head": 0.28, "softmax and cast": 0.10, "Gumbel": 0.52, "argmax": 0.04, "attention": 0.02, "MLP": 0.03},
    "t2i": {"LM head": 0.67, "guidance": 0.13, "multinomial": 0.06, "attention": 0.06, "MLP": 0.07},
    "update": {"old forward": 0.25, "forward": 0.26, "backward": 0.48},
}  # fmt: skip
"""Shares of the plain implementation's time."""


def parts_of(name: str, clock: Clock, seconds: float, ms: float, comparable: bool = True) -> dict[str, Any]:
    """Shares of ``seconds`` by part and ``ms`` a step, each beside what is expected of the workload ``name``.

    ``comparable``: whether the sizes are those the expectation was measured at.
    """
    shares = {part: spent / seconds for part, spent in clock.seconds.items()}
    shares["rest"] = max(0.0, 1.0 - sum(shares.values()))
    report: dict[str, Any] = {"workload": name, "ms": ms, "shares": shares}
    if comparable:
        report |= {"expected_shares": SHARES[name], "expected_ms": EXPECTED_MS[name]}
        report["off"] = off(report)
        report["as_expected"] = not report["off"]
    return report


def off(parts: dict[str, Any]) -> list[str]:
    """What is not as expected in a report of ``parts_of``: ``"ms"``, and names of parts; empty where nothing is expected.

    A part that nobody expects should take no time; the rest, what the expected parts leave.
    """
    if "expected_ms" not in parts:
        return []
    usual = {"rest": 1 - sum(parts["expected_shares"].values()), **parts["expected_shares"]}
    names = [
        name for name in {**usual, **parts["shares"]} if _far(parts["shares"].get(name, 0.0), usual.get(name, 0.0))
    ]
    slow_or_fast = abs(parts["ms"] / parts["expected_ms"] - 1) > TOLERANCE
    return ["ms", *names] if slow_or_fast else names


def _far(share: float, usual: float) -> bool:
    return abs(share - usual) > (TOLERANCE * usual if usual >= LARGE else POINTS)
