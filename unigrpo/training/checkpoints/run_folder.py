"""The checkpoints in a run's folder: which can be used, which are deleted, what is said when one cannot be written."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import CheckpointError
from .files import MANIFEST, SHOWN, aside_of, discard, fault, is_disk_fault, sealed_bytes, space_left


STATE = {
    "plain": (("optimizer.pt",), ("scheduler.pt",)),
    "FSDP": (("optimizer.bin", "optimizer_0*"), ("scheduler.pt",)),
    "DeepSpeed": (("global_step*",),),
}
"""By engine, what a checkpoint keeps of the optimizer and the schedule: one of each group's names is there.

DeepSpeed's folder also holds its own schedulers.
"""


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


def check_state(folder: Path, run: str | Path, engine: str) -> str | None:
    """What to do where the checkpoint ``folder`` has no optimizer or schedule for ``engine``; None if it has both.

    Going on without them would begin Adam's moments and the learning rate anew, at a later step.
    """
    missing = lacking(folder, engine)
    if missing is None:
        return None
    others = (
        checkpoint_folder(place, step)
        for place in dict.fromkeys([folder.parent, Path(run)])
        for step in steps_of(place)
    )
    usable = next((own for own in others if lacking(own, engine) is None and fault(own) is None), None)
    instead = "" if usable is None else f"resume from {usable}, which has them, or "
    cure = f"{instead}start a new run from its weights (model path) in another output_dir"
    return (
        f"cannot resume from {folder}: it has no {missing}, the state of optimizer and learning rate. It was written "
        f"with save_only_model=True, or by another engine than this run's ({engine}). {cure[0].upper()}{cure[1:]}"
    )


def lacking(folder: Path, engine: str) -> str | None:
    """The names in ``STATE`` that ``folder`` lacks."""
    groups = [names for names in STATE[engine] if not any(path for name in names for path in folder.glob(name))]
    return " and no ".join(" or ".join(names) for names in groups) or None


def none_usable(run: Path, reasons: dict[Path, str]) -> str:
    """What is said of a run that has checkpoints and can go on from none of them: why, newest first, and the cure."""
    told = "; ".join(f"{folder}: {reason}" for folder, reason in list(reasons.items())[:SHOWN])
    more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    return (
        f"cannot resume: {run} has checkpoints, and none of them is usable ({told}{more}). A start from the beginning "
        "would overwrite them: restore one, or name a whole one of another folder in resume_from_checkpoint; to start "
        "from the beginning, move these folders away or set another output_dir"
    )


def rotate(run: Path, limit: int | None, newest: Path, best: str | None) -> None:
    """Deletes checkpoints until ``limit`` are left, as ``save_total_limit`` says, after ``newest`` stands.

    ``newest``, which was just written and is whole, and the ``best`` one are kept. Torn ones go first, then those of
    later steps, which an earlier run left and this one does not go on from, then the oldest. Folders without a
    manifest are not of this package, and neither counted nor deleted.
    """
    if not limit or limit < 1:
        return
    # A resumed run may spell its folder in another way than the state that names the best one.
    kept = {newest.resolve(), newest.resolve() if best is None else Path(best).resolve()}
    now = int(newest.name.rpartition("-")[2])
    own = [folder for step in steps_of(run) if ((folder := checkpoint_folder(run, step)) / MANIFEST).exists()]
    others = [folder for folder in own if folder.resolve() not in kept]
    excess = len(own) - max(limit, len(own) - len(others))

    def worth(folder: Path) -> tuple[bool, bool, int]:
        step = int(folder.name.rpartition("-")[2])
        return fault(folder, contents=False) is None, step <= now, step

    for folder in sorted(others, key=worth)[: max(excess, 0)]:
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
        f"{written:,} bytes of it were written, {space_left(folder.parent)}{needed}. {kept}. "
        "Free space or raise the quota (save_total_limit needs less of it), then start the same command "
        "with resume_from_checkpoint=True"
    )
