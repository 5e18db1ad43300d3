"""A window on disk, so that a run resumes inside it: weights have moved since, it could not be sampled again."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...models.checkpoint_files import reading
from ...types import Experience, TokenSpace


TENSORS = [item.name for item in fields(Experience) if "Tensor" in str(item.type)]
SCALARS = ["advantage", "active", "task", "index"]


def save_window(
    path: Path,
    experiences: list[Experience],
    order: list[int],
    step: int,
    sizes: dict[str, int],
    pending: dict[str, Any],
) -> None:
    """Write ``experiences``, their ``order``, the micro-step counter, the ``sizes`` it counts in, and ``pending``: other values.

    One safetensors file; ``pending`` holds what JSON can.
    """
    tensors: dict[str, Tensor] = {}
    described = []
    for number, own in enumerate(experiences):
        for name in TENSORS:
            if getattr(own, name) is not None:
                tensors[f"{number}.{name}"] = getattr(own, name).contiguous()
        for key, value in own.extra.items():
            tensors[f"{number}.extra.{key}"] = value.contiguous()
        described.append({**{name: getattr(own, name) for name in SCALARS}, "token_space": asdict(own.token_space)})
    tensors = tensors or {"empty": torch.zeros(1)}
    window = {"step": step, "sizes": sizes, "order": order, "rows": described, "pending": pending}
    save_file(tensors, path, metadata={"window": json.dumps(window)})


def load_window(path: Path) -> tuple[list[Experience], list[int], int, dict[str, int], dict[str, Any]]:
    """Experiences, order, micro-step counter, sizes and pending values written by ``save_window``.

    Raises:
        ValueError: the file is damaged, or no such file.
    """
    with reading(f"rollout window {str(path)!r}"):
        return _load_window(path)


def _load_window(path: Path) -> tuple[list[Experience], list[int], int, dict[str, int], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        meta = json.loads(file.metadata()["window"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    experiences = []
    for number, scalars in enumerate(meta["rows"]):
        space = scalars.pop("token_space")
        own = {name: tensors.get(f"{number}.{name}") for name in TENSORS}
        prefix = f"{number}.extra."
        extra = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        space = TokenSpace(start=space["start"], stop=space["stop"], exclude=tuple(space["exclude"]))
        experiences.append(Experience(**own, **scalars, token_space=space, extra=extra))
    return experiences, meta["order"], meta["step"], meta["sizes"], meta["pending"]
