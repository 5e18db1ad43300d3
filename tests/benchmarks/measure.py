"""What a measurement is: rounds in turn, medians, ratios, and the statistics that check a law."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


EXACT, EXACT_LAW, APPROXIMATE = "exact", "exact distribution", "approximate"
"""The same tokens, or loss and gradients; the same law from other random numbers; neither."""

WARM_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
"""glibc keeps freed memory, as CUDA's caching allocator does: the conservative setting for a comparison."""

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One line of the table.

    Attributes:
        ours, plain: medians in ``unit`` (``s`` or ``MB``); None where the case has no such side.
        value: what ``goal`` and ``floor`` are about; None = ``plain / ours``.
        goal: what the library aims at on a quiet machine; ``floor``: below it something is broken.
        checks: correctness, by what was compared.
        skipped: why nothing was measured.
        extra: further numbers, JSON types only.
    """

    name: str
    kind: str
    unit: str = "s"
    ours: float | None = None
    plain: float | None = None
    value: float | None = None
    goal: float | None = None
    floor: float | None = None
    checks: dict[str, bool] = field(default_factory=dict)
    note: str = ""
    skipped: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How many times better ours is, or ``value``."""
        if self.value is not None or self.ours is None or self.plain is None:
            return self.value
        return self.plain / self.ours

    @property
    def ok(self) -> bool:
        """Whether everything checked is right and the ratio is not below the floor."""
        fast = self.floor is None or self.ratio is None or self.ratio >= self.floor
        return all(self.checks.values()) and fast

    def as_dict(self) -> dict[str, Any]:
        """JSON fields, with ``ratio`` and ``ok``."""
        return {**asdict(self), "ratio": self.ratio, "ok": self.ok}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Seconds of each round and what the last one returned."""

    seconds: list[float]
    value: Any

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def compared(
    name: str, kind: str, timed: dict[str, Timed], ours: str = "ours", plain: str = "plain", **more: Any
) -> Result:
    """The result of two of the sides that ``interleave`` timed."""
    return Result(name=name, kind=kind, ours=timed[ours].median, plain=timed[plain].median, **more)


def interleave(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Timed]:
    """Every side once a round, so that a slow moment of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    values: dict[str, Any] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            values.pop(name, None)
            start = time.perf_counter()
            values[name] = side()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timed(seconds=seconds[name], value=values[name]) for name in sides}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest |actual - expected| over the largest |expected|."""
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def linear_fit(x: list[float], y: list[float]) -> dict[str, float]:
    """``slope``, ``intercept`` and ``r2`` of the least-squares line."""
    fit = statistics.linear_regression(x, y)
    middle = statistics.fmean(y)
    total = sum((b - middle) ** 2 for b in y)
    rest = sum((b - fit.slope * a - fit.intercept) ** 2 for a, b in zip(x, y, strict=True))
    return {"slope": fit.slope, "intercept": fit.intercept, "r2": 1 - rest / total if total else 1.0}


def chi_square(draws: Tensor, probs: Tensor, bins: int = 48) -> float:
    """Chi-square over its degrees of freedom of ``draws [n]`` under ``probs [V]``, in bins of near-equal mass.

    1 in expectation, with a standard deviation of sqrt(2 / freedom).
    """
    order = probs.double().argsort(descending=True)
    cumulative = probs.double()[order].cumsum(0)
    bin_of = torch.empty_like(order)
    bin_of[order] = (cumulative / cumulative[-1] * bins).long().clamp(max=bins - 1)
    bins_used, bin_of = bin_of.unique(return_inverse=True)
    expected = torch.zeros(len(bins_used), dtype=torch.float64).index_add_(0, bin_of, probs.double())
    expected = expected / expected.sum() * len(draws)
    observed = bin_of[draws].bincount(minlength=len(bins_used)).double()
    return float(((observed - expected) ** 2 / expected).sum() / max(len(bins_used) - 1, 1))


def same_law(statistic: float, bins: int = 48) -> bool:
    """Whether a ``chi_square`` is within four standard deviations of 1."""
    return statistic < 1 + 4 * math.sqrt(2 / (bins - 1))


def touch_heap(gigabytes: float) -> None:
    """Fault the heap in once, so that no side of a comparison pays for the first use of a page."""
    torch.empty(int(gigabytes * 2**30), dtype=torch.uint8).fill_(1)


def environment(model: torch.nn.Module, size: str) -> dict[str, Any]:
    """What a number needs to be worth anything."""
    parameter = next(model.parameters())
    device = parameter.device
    warm = all(os.environ.get(key) == value for key, value in WARM_ALLOCATOR.items())
    return {
        "model": size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": model.config.vocab_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "allocator": "warm" if warm else "default",
        "torch": torch.__version__,
        "cpu": cpu_name(),
    }


def cpu_name() -> str:
    """The processor's model, as the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
