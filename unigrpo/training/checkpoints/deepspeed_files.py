"""DeepSpeed's files in a checkpoint, which DeepSpeed unpickles: looked through before it does."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...models.checkpoint_files import first_line


SUFFIXES = (".pt", ".bin", ".pth")

OWN = (
    "deepspeed.runtime.fp16.loss_scaler:DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler:LossScaler",
    "deepspeed.runtime.zero.config:ZeroStageEnum",
    "deepspeed.utils.tensor_fragment:fragment_address",
)
"""Classes that checkpoints of ZeRO hold beside tensors and plain values: settings, a scale, a place in a tensor."""

TAGS = ("latest", "latest_universal")
"""Files that name the sub-folder DeepSpeed reads."""


def refuse_code(folder: Path) -> None:
    """Looks through the torch files in the sub-folders of a checkpoint without unpickling them.

    Files may hold tensors, plain values and ``OWN``. Those beside the sub-folders are not DeepSpeed's and are not read.

    Raises:
        ValueError: a file holds anything else or is damaged, or the checkpoint names a folder outside itself.
    """
    for name in TAGS:
        file = folder / name
        if file.is_file() and not _is_tag(file.read_bytes()[:1_000].decode(errors="replace").strip()):
            raise ValueError(
                f"{str(file)!r} must name a folder beside it, such as global_step100, and names another place: the "
                "checkpoint was not written by DeepSpeed"
            )
    own = None
    for file in _files(folder):
        own = _own() if own is None else own
        with file.open("rb") as opened:
            zipped = opened.read(4) == b"PK\x03\x04"
        try:
            with torch.serialization.safe_globals(own):
                # Mapped, tensors are not read.
                torch.load(str(file), map_location="cpu", weights_only=True, mmap=zipped)
        except (MemoryError, OSError):
            raise
        except Exception as error:
            # A damaged pickle makes the reader raise anything.
            raise ValueError(
                f"{str(file)!r} holds more than a checkpoint of DeepSpeed's does, or is damaged, and DeepSpeed would "
                "unpickle it, which could run code. Resume from a checkpoint of your own, or start a new run from its "
                f"weights where they lie as .safetensors. ({first_line(error)})"
            ) from error


def _is_tag(text: str) -> bool:
    return re.fullmatch(r"[\w.-]+", text) is not None and text.strip(".") != ""


def _files(folder: Path) -> Iterator[Path]:
    """The torch files in sub-folders, also in those that are links; each folder once."""
    known = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, followlinks=True):
        new = [name for name in folders if os.path.realpath(Path(place, name)) not in known]
        known |= {os.path.realpath(Path(place, name)) for name in new}
        folders[:] = sorted(new)
        if Path(place) != folder:
            yield from (Path(place, name) for name in sorted(names) if name.lower().endswith(SUFFIXES))


def _own() -> list[Any]:
    """``OWN`` of the DeepSpeed that is installed; a version may lack one."""
    found = []
    for path in OWN:
        module, _, name = path.partition(":")
        try:
            found.append(getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError):
            continue
    return found
