"""Checkpoints from anywhere: read without running code or taking their word for a size, loaded without a stray key."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import CheckpointError


FULL_WEIGHTS = re.compile(r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
ADAPTER_WEIGHTS = re.compile(r"adapter_model\.(safetensors|bin)")
"""Names of the files in which a folder keeps weights."""

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


NAMED = 5
"""Names of one kind that a message lists."""

_MACHINE = [(torch, "OutOfMemoryError"), (torch, "AcceleratorError"), (torch.distributed, "DistError")]
MACHINE = tuple(getattr(module, name) for module, name in _MACHINE if hasattr(module, name))
"""Errors of a device or of another process, whatever was being read."""

OF_MACHINE = re.compile(
    r"(CUDA|HIP|NCCL|RCCL|cuDNN|XPU) (driver )?(version is|error)|C(UBLAS|UDNN)_STATUS_|NVIDIA driver|No CUDA GPUs|gloo/",
    re.IGNORECASE,
)
"""What torch says of them in a bare RuntimeError."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """What libraries raise on damaged or hostile files of ``what`` becomes a ValueError.

    Errors of the file system, of missing packages, of memory, of devices and of other processes stay as they are, and a
    TypeError about a keyword argument, which is one of the call.

    Raises:
        ValueError: the files cannot be read.
    """
    try:
        yield
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{what} cannot be read: the files are damaged ({first_line(error)})") from error
    except (ValueError, OSError, ImportError, MemoryError, *MACHINE):
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{what} holds more than plain tensors, and unpickling anything else could run code; get the weights as "
            f".safetensors ({first_line(error)})"
        ) from error
    except Exception as error:
        of_call = isinstance(error, TypeError) and "keyword argument" in str(error)
        if of_call or (isinstance(error, RuntimeError) and OF_MACHINE.search(str(error))):
            raise
        # Whatever a parser meets: KeyError, TypeError, a bare Exception of tokenizers, a SafetensorError.
        raise ValueError(
            f"{what} cannot be read: the files are damaged, or of something else "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error, cut to 300 characters; of torch's about a pickle the one that says what is in it."""
    found = re.search(r"(?:WeightsUnpickler error:\s*|Trying to load )(.+)", str(error))
    return found[1][:300] if found else (str(error).splitlines() or [""])[0][:300]


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
            f"weights as .safetensors, or save their state_dict() with torch.save. ({first_line(error)})"
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
        CheckpointError: a missing or unknown name, or another shape; the message lists them.
    """
    check_fit(module, weights, source)
    module.load_state_dict(dict(weights), strict=True)


def check_fit(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Are these the weights of ``module``, which may be on the meta device?

    Raises:
        CheckpointError: a missing or unknown name, or another shape; the message lists them.
    """
    expected = module.state_dict()
    shapes = [
        f"{name} is {tuple(weights[name].shape)} and must be {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    check_complete(source, expected.keys() - weights.keys(), weights.keys() - expected.keys(), shapes)


def check_complete(
    source: str,
    missing: Iterable[str],
    unknown: Iterable[str],
    shapes: Iterable[str] = (),
    allow_missing: Sequence[str] | str = (),
    cure: str = "Check that the configuration beside the weights is the one they were trained with",
) -> None:
    """Every parameter comes from the file, and every tensor of the file goes somewhere.

    Args:
        shapes: what is said of each tensor of another shape.
        allow_missing: names, or patterns with ``*``, of parameters that keep their first, random values.

    Raises:
        CheckpointError: they do not; the message lists the names, of many the first.
    """
    allowed = [allow_missing] if isinstance(allow_missing, str) else list(allow_missing)
    missing = sorted(name for name in missing if not any(fnmatchcase(name, pattern) for pattern in allowed))
    unknown, shapes = sorted(unknown), sorted(shapes)
    if not (missing or unknown or shapes):
        return
    found = {"missing": missing, "unknown": unknown, "shapes": shapes}
    said = "; ".join(f"{kind} {_listed(names)}" for kind, names in found.items() if names)
    only = " For parts that shall start from random values give allow_missing=[...]." if missing else ""
    raise CheckpointError(f"{source} does not fit the model: {said}. {cure}.{only}")


def check_loaded(source: str, found: Mapping[str, Any], allow_missing: Sequence[str] | str = ()) -> None:
    """``check_complete`` of what ``from_pretrained(..., output_loading_info=True)`` says.

    Raises:
        CheckpointError: the files lack parameters, or have others.
    """
    shapes = [
        f"{name} is {tuple(stored)} and must be {tuple(wanted)}" for name, stored, wanted in found["mismatched_keys"]
    ]
    check_complete(source, found["missing_keys"], found["unexpected_keys"], shapes, allow_missing)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{names[:NAMED]}{more}"


def check_declared(
    config: Any, build: Callable[[Any], nn.Module], path: str | Path, what: str, **options: Any
) -> None:
    """Is a model of this configuration about as large as the weights of ``path``? Nothing is allocated for it.

    Args:
        config: a configuration of transformers.
        build: the module of a configuration; it is called on the meta device.
        path: a folder, or an id of the hub, whose weights are then in the cache or come into it.
        options: those of ``from_pretrained``; of them count the ones that say which files are read, and whence.

    Raises:
        ValueError: more layers or far more numbers than the files can hold, or a padding id outside the vocabulary.
    """
    pad, vocabulary = (getattr(config, name, None) for name in ("pad_token_id", "vocab_size"))
    if isinstance(pad, int) and isinstance(vocabulary, int) and not -vocabulary <= pad < vocabulary:
        raise ValueError(
            f"{what}: pad_token_id={pad} lies outside the vocabulary of {vocabulary}; set it to a token's id"
        )
    tensors, size = stored(weight_files(config, path, **options))
    check_numbers(config.to_dict(), what, max(tensors, FEW_LAYERS) if tensors is not None else MANY_LAYERS)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        wanted = sum(tensor.numel() for tensor in build(config).state_dict().values())
    # Weights of four bits are the smallest, and a head or an embedding may be left to its initialisation.
    if size is not None and wanted > 4 * size + 2**24:
        raise ValueError(
            f"{what}: the configuration asks for {wanted:,} numbers, and the files beside it hold {size:,} bytes of "
            "weights: they do not belong together"
        )


DOWNLOAD = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision", "subfolder")
"""Options of ``from_pretrained`` that say where a file of an id is looked for."""


def hub_file(path: str | Path, name: str, **options: Any) -> Path | None:
    """A file of a folder or an id, from the cache or else downloaded into it; None where there is none."""
    from transformers.utils import cached_file

    options = {key: value for key, value in options.items() if key in DOWNLOAD and value is not None}
    try:
        found = cached_file(str(path), name, **options)
    except OSError:  # Not there, or not to be reached: whoever then loads it says why.
        return None
    return None if found is None else Path(found)


def weights_in(folder: str | Path) -> list[str]:
    """Names of the files of weights in a folder: those of a whole model first, then those of an adapter."""
    names = sorted(path.name for path in Path(folder).glob("*model*") if path.is_file())
    return [name for kind in (FULL_WEIGHTS, ADAPTER_WEIGHTS) for name in names if kind.fullmatch(name)]


def weight_files(config: Any, path: str | Path, **options: Any) -> list[Path]:
    """All weights in a folder; of an id the files that ``from_pretrained`` reads."""
    if os.path.isdir(path):
        folder = Path(path, options.get("subfolder") or "")
        safe = [file for file in sorted(folder.glob("*.safetensors")) if file.is_file()]
        return safe or [file for kind in ("bin", "pt", "pth") for file in folder.glob(f"*.{kind}") if file.is_file()]
    names = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"]
    safe = options.get("use_safetensors")
    names = names[2:] if safe is False else names[:2] if safe else names
    if variant := options.get("variant"):
        names = [f"{stem}.{variant}.{kind}" for stem, _, kind in (name.rpartition(".") for name in names)]
    if isinstance(own := getattr(config, "transformers_weights", None), str):
        names = [own]
    for name in names:
        if (file := hub_file(path, name, **options)) is None:
            continue
        if not name.endswith(".json"):
            return [file]
        parts = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
        return [part for one in parts if (part := hub_file(path, one, **options)) is not None]
    return []


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


def stored(files: list[Path]) -> tuple[int | None, int | None]:
    """How many tensors and how many bytes files of weights hold; None for what cannot be said without loading."""
    if not files:
        return None, None
    safe = all(file.suffix == ".safetensors" for file in files)
    return sum(len(shapes(file)) for file in files) if safe else None, sum(file.stat().st_size for file in files)


def published(model: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor of a network as files of its family have them, which differs from its modules where they are converted."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, model.state_dict())


def check_names(config: Any, build: Callable[[Any], nn.Module], path: str | Path, what: str, **options: Any) -> None:
    """Have the files at ``path`` the names of a family whose tensors are converted? Arguments as of ``check_declared``.

    Raises:
        CheckpointError: they lack some, or have others.
    """
    files = weight_files(config, path, **options)
    found = {name for file in files if file.suffix == ".safetensors" for name in shapes(file)}
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = build(config)
    wanted = published(model).keys()
    if wanted != model.state_dict().keys():
        check_complete(what, wanted - found, found - wanted)


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
