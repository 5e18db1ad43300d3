"""Whose a folder is when a run starts in it, and whether the run is the one that it goes on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...errors import CheckpointError
from .run_record import RunRecord, changes, read_record
from .used_folder import clear, left_by_a_run, used


def begin(
    folder: Path, own: RunRecord, resume: bool, checkpoint: Path | None, overwrite: bool
) -> tuple[RunRecord, list[str]]:
    """The record of the run that starts in ``folder``, and what is to be told about it.

    Args:
        own: the run as it is described now, with a new id.
        resume: it was asked to go on.
        checkpoint: what it goes on from; None = from the beginning.
        overwrite: what another run left is deleted.

    Raises:
        CheckpointError: the folder is another run's, or the run is not the one that it is to go on from.
    """
    left, there = left_by_a_run(folder), read_record(folder)
    if resume and overwrite:
        raise CheckpointError(
            "overwrite=True deletes the run that resume_from_checkpoint goes on from: give one of the two"
        )
    if not resume:
        if left and not overwrite:
            raise CheckpointError(used(folder, left))
        clear(folder)
        return own, []
    if checkpoint is None:
        # Of one that died before its first checkpoint, logs and the first measurement are there.
        return (own, []) if there is None or not left else _gone_on(folder, own, there, there)
    stored = read_record(checkpoint)
    elsewhere = checkpoint.resolve().parent != folder.resolve()
    unknown = there is None or stored is None
    if left and (elsewhere if unknown else there.run_id != stored.run_id):
        raise CheckpointError(f"cannot resume from {checkpoint} in another run's folder: {used(folder, left)}")
    if stored is None:
        return own, [
            f"{checkpoint} does not say of which run it is, as those of earlier versions do not: that model, method "
            "and seed are the same is not checked"
        ]
    return _gone_on(checkpoint, own, stored, there)


def foreign(checkpoint: Path, folder: Path) -> str | None:
    """Why a checkpoint in ``folder`` is not of the folder's run; None if it is, or nobody knows."""
    stored, there = read_record(checkpoint), read_record(folder)
    if stored is None or there is None or stored.run_id == there.run_id:
        return None
    return f"it is of run {stored.run_id}, and the folder of run {there.run_id}"


def _gone_on(place: Path, own: RunRecord, stored: RunRecord, there: RunRecord | None) -> tuple[RunRecord, list[str]]:
    """``own`` as the run of ``stored``, found in ``place``.

    Raises:
        CheckpointError: what a run keeps to its end has changed.
    """
    broken = changes(stored.kept, own.kept)
    if broken:
        raise CheckpointError(
            f"cannot resume from {place}, of run {stored.run_id}: {'; '.join(broken)}. A run keeps these to its end: "
            "what its checkpoints hold was made with them. Set them back, or start a new run (another output_dir), from its weights (model path) if you like"
        )
    files = there.files if there is not None and there.run_id == stored.run_id else {}
    record = replace(own, run_id=stored.run_id, about={**own.about, **stored.about}, files=files)
    changed = changes(stored.told, own.told)
    told = f"the run goes on from {place} with other settings: {'; '.join(changed)}. The new ones hold from here on"
    return record, [told] if changed else []
