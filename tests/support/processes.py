"""Several processes on one machine: scenes are played on each, over gloo, and leave what they saw."""

from __future__ import annotations

import datetime
import importlib
import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


LIMIT = datetime.timedelta(seconds=60)
"""How long a process waits for another before the test fails."""


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _worker(rank: int, size: int, port: int, folder: str, module: str, scenes: list[tuple[str, dict]]) -> None:
    torch.set_num_threads(1)
    # As a launcher would set them, so that accelerate finds its place.
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # A worker is forked from a process that reads no conftest: the engine on processors has to be chosen here.
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=LIMIT)
    functions = importlib.import_module(module)
    for number, (name, arguments) in enumerate(scenes):
        torch.save(getattr(functions, name)(rank, **arguments), f"{folder}/{number}_{rank}.pt")
        dist.barrier()
    dist.destroy_process_group()


def played(size: int, folder: Path, module: str, *scenes: tuple[str, dict[str, Any]]) -> list[list[Any]]:
    """``module``'s functions called as ``name(rank, **arguments)`` on ``size`` processes, one after the other.

    Returns:
        for each scene, what it returned on each process: tensors, numbers, texts and containers of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload([__name__, module])
    arguments = (size, free_port(), str(folder), module, list(scenes))
    torch.multiprocessing.start_processes(_worker, arguments, nprocs=size, start_method="forkserver")
    return [
        [torch.load(folder / f"{number}_{rank}.pt", weights_only=True) for rank in range(size)]
        for number in range(len(scenes))
    ]
