"""``builtin:NAME``: checkpoints that ship with the package."""

from __future__ import annotations

import os
from pathlib import Path


BUILTIN = "builtin:"


SHIPPED = Path(__file__).parents[1] / "toy" / "checkpoints"


def model_name(path: str) -> str:
    """The inverse of ``model_path``: ``builtin:NAME`` for the folder of a checkpoint that ships with the package; else as it is."""
    folder = Path(path)
    return BUILTIN + folder.name if folder.is_absolute() and folder.parent == SHIPPED else path


def model_path(path: str) -> str:
    """``builtin:NAME`` as the folder of a checkpoint that ships with the package; ``~`` as the home folder; else as it is."""
    if not path.startswith(BUILTIN):
        return os.path.expanduser(path)
    name = path.removeprefix(BUILTIN)
    known = sorted(folder.name for folder in SHIPPED.iterdir() if (folder / "config.json").exists())
    if name not in known:
        raise ValueError(f"model path {path!r} is unknown: shipped checkpoints are {[BUILTIN + n for n in known]}")
    return str(SHIPPED / name)
