"""What differs between a GPU and a CPU for whoever measures."""

from __future__ import annotations

import resource
from dataclasses import replace

import torch

from ..benchmarks.mid import UpdateBatch


def synchronize(device: str) -> None:
    """Waits until everything that was launched is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def autocast(device: str, on: bool = True) -> torch.autocast:
    """bf16 where fp32 weights of an adapter meet bf16 ones, as ``bf16: true`` has it; a CPU stays in fp32."""
    return torch.autocast(device, torch.bfloat16, enabled=on and device == "cuda")


def forget(device: str) -> None:
    """Gives cached memory back, so that what comes next meets no fragments and its peak is its own."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: str) -> float:
    """GB of 10^9 bytes at most: allocated since ``forget`` on a GPU, resident since the process began elsewhere."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def moved(batch: UpdateBatch, device: str) -> UpdateBatch:
    """The batch on ``device``."""
    names = ("canvas", "hidden", "advantages", "old_shift")
    return replace(batch, **{name: getattr(batch, name).to(device) for name in names})
