"""What differs between the CPU and a device: the host does not wait for a device where it knows the answer itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def on_host(tensor: Tensor) -> bool:
    """Whether a value can be read without waiting for a device."""
    return tensor.device.type == "cpu"


def upload(values: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers or a CPU tensor on ``device``. To a GPU they go from pinned memory, and nobody waits for the copy."""
    tensor = torch.as_tensor(values, dtype=dtype)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` of half-precision matrices, summed and returned in fp32; no gradient.

    A GPU multiplies bf16 at many times the speed of fp32 and gives the same products. A CPU has no such kernel.
    """
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def places_of(mask: Tensor, count: int | None = None) -> Tensor:
    """The flat indices ``[n]`` of the True positions of ``mask``; with a known ``count`` the host does not ask for it."""
    flat = mask.flatten()
    if count is None:
        return flat.nonzero().squeeze(1)
    return flat.nonzero_static(size=count).squeeze(1)
