"""Weights of scorers from files: read without running code, loaded without a missing or a left-over key."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor of a ``.safetensors`` file or of a ``torch.save`` file, on the CPU.

    A ``{"state_dict": ...}`` around the tensors and a ``module.`` before every name are taken off.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds anything but tensors. Such a file is never unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {str(path)!r}")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{str(path)!r} is not a file of plain tensors, and unpickling anything else could run code. Get the "
            f"weights as .safetensors, or save their state_dict() with torch.save. ({str(error).splitlines()[0]})"
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{str(path)!r} must hold a state dict, name -> tensor, and holds a {type(loaded).__name__}")
    prefix = "module." if loaded and all(name.startswith("module.") for name in loaded) else ""
    return {name.removeprefix(prefix): value for name, value in loaded.items()}


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copies ``weights`` into ``module``.

    Raises:
        ValueError: a missing or unknown name, or another shape; the message lists all of them.
    """
    expected = module.state_dict()
    missing = sorted(expected.keys() - weights.keys())
    unknown = sorted(weights.keys() - expected.keys())
    shapes = [
        f"{name} is {tuple(weights[name].shape)} and must be {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if missing or unknown or shapes:
        raise ValueError(
            f"{source} does not fit the model: missing {missing}; unknown {unknown}; shapes {shapes}. "
            "Check that the configuration beside the weights is the one they were trained with."
        )
    module.load_state_dict(dict(weights), strict=True)
