"""Every row looked at before a run starts, by all cores where there are many."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..terminal import tracked
from ..types import keyed_generator


MANY_ROWS = 5_000
"""Rows that one process checks alone; further ones show their progress, and are shared by processes."""

CHUNK = 256
"""Rows that a process is handed at once."""

MOST_PROCESSES = 16


def each_row(count: int, name: str, check: Callable[[int], Any]) -> Iterator[Any]:
    """``check(index)`` of ``count`` rows, in order.

    From ``MANY_ROWS`` on ``check`` runs in forked processes: what it returns is pickled, what it changes is lost.

    Args:
        name: of the dataset, where progress is shown.

    Raises:
        ValueError: of the first row of which ``check`` raises one.
    """
    alone = min(count, MANY_ROWS)
    yield from map(check, range(alone))
    if count == alone:
        return
    processes = _processes((count - alone) // MANY_ROWS)
    if processes < 2:
        yield from map(check, tracked(range(alone, count), f"checking {name}"))
        return
    chunks = _Chunks(check, alone, count)
    with _one_thread_for_tokens():
        loader = DataLoader(
            chunks,
            batch_size=None,
            collate_fn=_as_found,
            num_workers=processes,
            multiprocessing_context="fork",
            generator=keyed_generator("check"),
        )
        for found, error in tracked(loader, f"checking {name}"):  # type: ignore[arg-type]  # it has a length and is walked through
            yield from found
            if error is not None:
                raise error


def _as_found(chunk: Any) -> Any:
    """A chunk as it is; a loader's own way makes lists of tuples, and tensors of numbers."""
    return chunk


class _Chunks(Dataset):
    """What is found in each stretch of rows, and the error that ended it."""

    def __init__(self, check: Callable[[int], Any], first: int, end: int) -> None:
        self.check, self.starts, self.end = check, range(first, end, CHUNK), end

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> tuple[list[Any], Exception | None]:
        start, found = self.starts[number], []
        try:
            for index in range(start, min(start + CHUNK, self.end)):
                found.append(self.check(index))
        except ValueError as error:
            # Raised in the process that trains, with nothing of this one around it.
            return found, ValueError(str(error))
        return found, None


def _processes(useful: int) -> int:
    """Processes to check with: cores of this machine over the ranks that share it."""
    if not sys.platform.startswith("linux"):
        return 1
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(len(os.sched_getaffinity(0)) // ranks, MOST_PROCESSES, useful + 1)


@contextmanager
def _one_thread_for_tokens() -> Iterator[None]:
    """Tokenizers warn in each forked process unless they are told to use one thread."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before
