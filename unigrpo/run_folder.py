"""The checkpoints in a run's folder: which can be used, which are deleted, what is said when one cannot be written."""

from __future__ import annotations

import re
from pathlib import Path

from .durable import CheckpointError, aside_of, discard, fault, is_disk_fault, sealed_bytes, space_left


def checkpoint_folder(run: str | Path, step: int) -> Path:
    return Path(run) / f"checkpoint-{step}"


def steps_of(run: str | Path) -> list[int]:
    """The steps of the checkpoints in ``run``, whole or not, newest first."""
    names = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in Path(run).glob("checkpoint-*") if path.is_dir())
    return sorted((int(name[1]) for name in names if name), reverse=True)


def newest_usable(run: str | Path, contents: bool = True) -> Path | None:
    """The newest checkpoint of ``run`` that is whole; ``contents`` as in ``fault``."""
    folders = (checkpoint_folder(run, step) for step in steps_of(run))
    return next((folder for folder in folders if fault(folder, contents) is None), None)


def check_named(folder: Path, run: str | Path) -> str | None:
    """What is wrong with a checkpoint that a run was told to resume from, and what to do; None if it is whole."""
    reason = fault(folder)
    if reason is None:
        return None
    for other in dict.fromkeys([folder.parent, Path(run)]):
        usable = newest_usable(other)
        if usable is not None:
            return f"cannot resume from {folder}: {reason}. Resume from {usable}, the newest usable one, or with True"
    return (
        f"cannot resume from {folder}: {reason}. No usable checkpoint lies beside it; start a new run, from its "
        "weights (model path) where those are whole"
    )


def rotate(run: Path, limit: int | None, newest: Path, best: str | None) -> None:
    """Deletes checkpoints until ``limit`` are left, as ``save_total_limit`` says, after ``newest`` stands.

    ``newest``, which was just written and is whole, and the ``best`` one are kept. Torn ones go first, then those of
    later steps, which an earlier run left and this one does not go on from, then the oldest.
    """
    if not limit or limit < 1:
        return
    kept = {newest, newest if best is None else Path(best)}
    now = int(newest.name.rpartition("-")[2])
    others = [checkpoint_folder(run, step) for step in steps_of(run)]
    excess = len(others) - max(limit, len(kept & set(others)))

    def worth(folder: Path) -> tuple[bool, bool, int]:
        step = int(folder.name.rpartition("-")[2])
        return fault(folder, contents=False) is None, step <= now, step

    for folder in sorted(set(others) - kept, key=worth)[: max(excess, 0)]:
        discard(folder)


def saving_error(folder: Path, error: Exception) -> Exception:
    """The error to raise when ``folder`` could not be written; disk faults get a message with numbers and a cure.

    To be called while what was written lies aside.
    """
    if isinstance(error, CheckpointError) or not is_disk_fault(error):
        return error
    aside, last = aside_of(folder), newest_usable(folder.parent, contents=False)
    written = sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())
    needed = f", {last.name} takes {sealed_bytes(last):,}" if last is not None else ""
    kept = (
        f"The last usable checkpoint is {last}"
        if last is not None
        else f"{folder.parent} has no usable checkpoint yet"
    )
    return CheckpointError(
        f"{folder} could not be written, the disk does not take it ({type(error).__name__}: {error}). "
        f"{written:,} bytes of it were written, {space_left(folder.parent):,} are free{needed}. {kept}. Free space or raise the quota (save_total_limit and "
        "save_only_model need less of it), then start the same command with resume_from_checkpoint=True"
    )
