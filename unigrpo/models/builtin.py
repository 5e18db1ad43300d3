"""``builtin:NAME``: checkpoints that ship with the package."""

from __future__ import annotations

import os
from pathlib import Path


BUILTIN = "builtin:"


def model_path(path: str) -> str:
    """``builtin:NAME`` as the folder of a checkpoint that ships with the package; ``~`` as the home folder; else as it is."""
    if not path.startswith(BUILTIN):
        return os.path.expanduser(path)
    shipped = Path(__file__).parents[1] / "toy" / "checkpoints"
    name = path.removeprefix(BUILTIN)
    known = sorted(folder.name for folder in shipped.iterdir() if (folder / "config.json").exists())
    if name not in known:
        raise ValueError(f"model path {path!r} is unknown: shipped checkpoints are {[BUILTIN + n for n in known]}")
    return str(shipped / name)
