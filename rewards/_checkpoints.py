"""Checkpoints from anywhere: read without running code or taking their word for a size, loaded without a stray key."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn


LAYERS = {"num_hidden_layers", "n_layers", "n_layer", "num_layers", "layers", "depth", "depths"} | {
    f"{side}_{kind}" for side in ("encoder", "decoder") for kind in ("layers", "blocks")
}
"""Names under which configurations say how many layers there are: a number, or one for each stage."""

FEW_LAYERS = 256
"""So many may be declared whatever the weights are: a layer can share its weights with the others."""

MANY_LAYERS = 10_000
"""More are not built where nothing says how many tensors there are."""

LARGEST = 2**53
"""A configuration's whole numbers beyond this are no sizes, and no float holds them."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """What libraries raise on damaged or hostile files of ``what`` becomes a ValueError.

    Errors of the file system, of missing packages and of memory stay as they are.

    Raises:
        ValueError: the files cannot be read.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{what} holds more than plain tensors, and unpickling anything else could run code; get the weights as "
            f".safetensors ({_first_line(error)})"
        ) from error
    except Exception as error:
        # Whatever a parser meets: KeyError, TypeError, a bare Exception of tokenizers, a SafetensorError.
        raise ValueError(
            f"{what} cannot be read: the files are damaged, or of something else "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor of a ``.safetensors`` file or of a ``torch.save`` file, on the CPU.

    A ``{"state_dict": ...}`` around the tensors and a ``module.`` before every name are taken off.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds anything but tensors. Such a file is never unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {str(path)!r}")
    if path.suffix == ".safetensors":
        with reading(repr(str(path))):
            return load_file(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        # A damaged pickle makes the reader raise anything: IndexError, KeyError, struct.error, UnicodeDecodeError.
        raise ValueError(
            f"{str(path)!r} is not a file of plain tensors, and unpickling anything else could run code. Get the "
            f"weights as .safetensors, or save their state_dict() with torch.save. ({_first_line(error)})"
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise ValueError(f"{str(path)!r} must hold a state dict, name -> tensor, and holds a {type(loaded).__name__}")
    prefix = "module." if loaded and all(name.startswith("module.") for name in loaded) else ""
    return {name.removeprefix(prefix): value for name, value in loaded.items()}


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copies ``weights`` into ``module``.

    Raises:
        ValueError: a missing or unknown name, or another shape; the message lists all of them.
    """
    check_fit(module, weights, source)
    module.load_state_dict(dict(weights), strict=True)


def check_fit(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Are these the weights of ``module``, which may be on the meta device?

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


def check_declared(config: Any, build: Callable[[Any], nn.Module], folder: str | Path, what: str) -> None:
    """Is a model of this configuration about as large as the weights in ``folder``? Nothing is allocated for it.

    Args:
        config: a configuration of transformers.
        build: the module of a configuration; it is called on the meta device.

    Raises:
        ValueError: more layers or far more numbers than the files can hold.
    """
    tensors, size = stored(folder)
    check_numbers(config.to_dict(), what, max(tensors, FEW_LAYERS) if tensors is not None else MANY_LAYERS)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        wanted = sum(tensor.numel() for tensor in build(config).state_dict().values())
    # Weights of four bits are the smallest, and a head or an embedding may be left to its initialisation.
    if size is not None and wanted > 4 * size + 2**24:
        raise ValueError(
            f"{what}: the configuration asks for {wanted:,} numbers, and the files beside it hold {size:,} bytes of "
            "weights: they do not belong together"
        )


def check_numbers(values: Any, what: str, layers: int) -> None:
    """Refuses a configuration with more than ``layers`` layers anywhere, or a whole number that is no size.

    Raises:
        ValueError: the message names the field.
    """
    for name, value in values.items():
        parts = value if isinstance(value, list | tuple) else [value]
        numbers = [part for part in parts if isinstance(part, int)]
        if any(abs(number) > LARGEST for number in numbers):
            raise ValueError(f"{what}: {name} is {abs(max(numbers, key=abs)):.0e}, which is no size")
        if name in LAYERS and sum(numbers) > layers:
            raise ValueError(f"{what}: {name}={value} layers, and the weights are of at most {layers}")
        for part in parts:
            if isinstance(part, Mapping):
                check_numbers(part, what, layers)


def stored(folder: str | Path) -> tuple[int | None, int | None]:
    """How many tensors and how many bytes of weights lie in a folder; None for what cannot be said without loading."""
    folder = Path(folder)
    files = [file for file in sorted(folder.glob("*.safetensors")) if file.is_file()]
    if not files:
        others = [file for kind in ("bin", "pt", "pth") for file in folder.glob(f"*.{kind}") if file.is_file()]
        return None, sum(file.stat().st_size for file in others) if others else None
    return sum(len(shapes(file)) for file in files), sum(file.stat().st_size for file in files)


def shapes(file: str | Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a ``.safetensors`` file, from its header.

    Raises:
        ValueError: the header is damaged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{str(file)!r} is damaged: {error}") from error
