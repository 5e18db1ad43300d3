"""A folder that a run has used: what that left there, how it is replaced on purpose, and which name is free."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from ...errors import CheckpointError
from ...models.checkpoint_files import weights_in
from .files import MANIFEST, SHOWN, discard, file_fault
from .lock import LOCK, locked, read_lock
from .run_folder import checkpoint_folder, steps_of
from .run_record import RECORD, read_record


RUN_FILES = ("metrics.jsonl", "summary.json", "before.json", "reward_curve.png")
RUN_FILES += tuple(f"images{what}.png" for what in ("", "_before", "_after"))
RUN_FILES += ("after.json", "denoising_before.json", "denoising_after.json")
"""What a run leaves beside checkpoints and weights, and ``completions/``."""

COMPLETIONS = ("completions_*.parquet", "images_*.png")
"""What ``log_completions`` leaves in ``completions/``."""


def left_by_a_run(folder: Path) -> list[str]:
    """The names in ``folder`` of what a run left and another would overwrite or mix with its own."""
    checkpoints = [f"checkpoint-{step}" for step in steps_of(folder) if any(checkpoint_folder(folder, step).iterdir())]
    logs = [name for name in RUN_FILES if _has_content(folder / name)]
    return checkpoints + weights_in(folder) + logs + [f"completions/{path.name}" for path in _completions(folder)]


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _completions(folder: Path) -> list[Path]:
    return sorted(path for pattern in COMPLETIONS for path in (folder / "completions").glob(pattern))


def used(folder: Path, left: list[str]) -> str:
    """What is said of a folder that another run may not write into, and the choices."""
    return (
        f"{folder} holds {_listed(left)} of an earlier run, which this one would overwrite or mix with its own. Set another "
        "output_dir, or resume_from_checkpoint=True to go on with that run, or overwrite=True to replace it"
    )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def clear(folder: Path) -> None:
    """Deletes what a run of this library left in ``folder``, and nothing else.

    Its checkpoints, logs and pictures, and those of the weights and their files that are still as it wrote them.

    Raises:
        CheckpointError: what is in the way was not left by a run that is known; nothing is deleted then.
    """
    record = read_record(folder)
    ours = set() if record is None else {name for name, own in record.files.items() if _is_as(folder / name, own)}
    own_steps = [step for step in steps_of(folder) if (checkpoint_folder(folder, step) / MANIFEST).exists()]
    known = {*ours, *(f"checkpoint-{step}" for step in own_steps)}
    if record is not None:
        known |= {*RUN_FILES, *(f"completions/{path.name}" for path in _completions(folder))}
    foreign = [name for name in left_by_a_run(folder) if name not in known]
    if foreign:
        raise CheckpointError(
            f"overwrite=True deletes what a run of this library left, and {folder} holds {_listed(foreign)}, which none is known "
            "to have written as it is. Move that away, or set another output_dir"
        )
    for step in own_steps:
        discard(checkpoint_folder(folder, step))
    # The record last: dying on the way leaves what says that the rest may go.
    for name in (*known, RECORD):
        if (folder / name).is_file():
            (folder / name).unlink()
    if (folder / "completions").is_dir() and not any((folder / "completions").iterdir()):
        (folder / "completions").rmdir()


def _is_as(path: Path, described: dict[str, int]) -> bool:
    return file_fault(path, described, contents=True) is None


def take_free_folder(asked: Path, lock: ExitStack) -> tuple[Path, str | None]:
    """``asked``, or the first of ``asked-2``, ``asked-3`` ... that no run has used or uses, made and locked.

    Args:
        lock: keeps the lock.

    Returns:
        the folder, and why it is not the one that was asked for.

    Raises:
        CheckpointError: the name has no number to count, as ``.`` has none.
    """
    reason = None
    for number in itertools.count(1):
        folder = asked if number == 1 else asked.with_name(f"{asked.name}-{number}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{reason}, and the next name cannot be made ({error.strerror}): set another output_dir"
            ) from error
        with ExitStack() as own:
            try:
                own.enter_context(locked(folder))
                left = left_by_a_run(folder)
                why = f"{folder} holds a run ({_listed(left)})" if left else None
            except CheckpointError:
                why = f"{folder} is in use by {read_lock(folder / LOCK) or 'another run'}"
            if why is None:
                lock.push(own.pop_all())
                return folder, reason
            reason = reason or why
        if asked.name in ("", ".."):
            break
    raise CheckpointError(f"{reason}, and its name has no successor: set another output_dir")
