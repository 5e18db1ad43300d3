"""What a folder of a run or an evaluation holds, read as far as it goes: a file that is missing, torn or foreign is no error."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...training.checkpoints.lock import LOCK, read_lock
from ...training.checkpoints.run_record import RunRecord, read_record


METRICS, SUMMARY, RESULTS, ANSWERS = "metrics.jsonl", "summary.json", "results.json", "answers.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """A folder as it was found.

    Attributes:
        kind: ``"train"``, ``"sft"`` or ``"evaluation"``.
        metrics: the logs, one mapping a step that was logged.
        summary: of a finished run; empty while there is none.
        results: of an evaluation; empty for a run.
        measured: held-out measurements by ``"before"`` and ``"after"``.
        denoising: recorded answers by label, see ``denoising.denoising``.
        written: when a log was last written.
        running: True or False where it can be seen whether a process is at work there, else None.
    """

    path: Path
    kind: str
    metrics: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    record: RunRecord | None = None
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    denoising: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    written: datetime | None = None
    running: bool | None = None

    @property
    def finished(self) -> bool:
        """Whether the run, or the evaluation, came to its end."""
        return bool(self.summary) or (bool(self.results) and self.results.get("finished") is not False)

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return max((int(own["step"]) for own in self.metrics if is_number(own.get("step"))), default=0)

    @property
    def total(self) -> int | None:
        """Optimizer steps of the whole run, where the record says."""
        told = self.record.told.get("max_steps") if self.record else None
        return int(told) if is_number(told) and told > 0 else self.summary.get("optimizer_steps")

    @property
    def about(self) -> dict[str, Any]:
        """How the run was started: ``recipe``, ``model``, ``command``, ``overrides``, ``datasets``, ``started``."""
        return self.record.about if self.record else {}

    def points(self, name: str) -> list[tuple[float, float]]:
        """``(step, value)`` of a metric, where it was logged as a number."""
        return [
            (own["step"], own[name]) for own in self.metrics if is_number(own.get(name)) and is_number(own.get("step"))
        ]


def is_number(value: Any) -> bool:
    """Whether ``value`` is a number of JSON that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def read_folder(path: str | Path, metrics: list[dict[str, Any]] | None = None) -> RunFolder:
    """The folder of a run or of an evaluation; ``metrics`` are its logs, where they were read already.

    Raises:
        ValueError: there is no folder, or nothing of ours in it.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(
            f"FOLDER {str(path)!r} is not there: give the output_dir of a run, or the folder of an evaluation"
        )
    found = read_json(path / RESULTS)
    # Another program's file of that name is none of ours.
    results = found if isinstance(found.get("tasks"), dict) else {}
    record, summary = read_record(path), read_json(path / SUMMARY)
    metrics = read_lines(path / METRICS) if metrics is None else metrics
    if not (results or record or metrics or summary or (path / METRICS).exists()):
        raise ValueError(
            f"FOLDER {str(path)!r} holds no run and no evaluation: none of {METRICS}, {SUMMARY}, {RESULTS} can be read there"
        )
    labels = ("before", "after")
    return RunFolder(
        path=path,
        kind="evaluation" if results else _kind(record, metrics, summary),
        metrics=metrics,
        # A summary beside another run's record is an earlier one's.
        summary=summary if record is None or summary.get("run_id") in (None, record.run_id) else {},
        results=results,
        record=record,
        measured={label: found for label in labels if (found := read_json(path / f"{label}.json"))},
        denoising={label: found for label in labels if (found := _entries(path / f"denoising_{label}.json"))},
        written=written_at(path / METRICS) or written_at(path / RESULTS),
        running=is_running(path),
    )


def _kind(record: RunRecord | None, metrics: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    """``"sft"`` for a run that has no rewards."""
    if record is not None:
        return "train" if "rewards" in record.kept else "sft"
    rewarded = any(name.startswith("reward") for own in metrics for name in own)
    return "train" if rewarded or "held_out_rewards_before" in summary or not metrics else "sft"


def is_running(path: Path) -> bool | None:
    """Whether a process is at work in a run's folder; None for one of another machine, which cannot be seen from here."""
    try:
        holder = read_lock(path / LOCK)
    except CheckpointError:
        return None
    if holder is None or holder.is_gone:
        return False
    return True if holder.host == this_host() else None


def this_host() -> str:
    """This machine's name, as locks have it."""
    import socket

    return socket.gethostname()


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a file; empty where none can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return []
    return [own for own in found if isinstance(own, dict)] if isinstance(found, list) else []


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The mappings of a file of JSON lines; a line that is being written, or was cut short, is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [own for line in text.splitlines() if (own := parsed(line)) is not None]


def parsed(line: str) -> dict[str, Any] | None:
    """A line of JSON as a mapping; None for what is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def written_at(path: Path) -> datetime | None:
    """When a file was last written, UTC; None where it is not there."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return None


def completions_of(path: Path, newest: int) -> list[dict[str, Any]]:
    """Rows of the newest completions that ``log_completions`` left, oldest file first, each with its ``step``.

    A file that is being written is passed over.
    """
    from pyarrow import ArrowException, parquet

    rows: list[dict[str, Any]] = []
    files = sorted((path / "completions").glob("completions_*.parquet"))
    for file in reversed(files):
        try:
            own = parquet.read_table(file).to_pylist()
        except (OSError, ArrowException):
            continue
        number = file.stem.rpartition("_")[2]
        rows = [{"step": int(number) if number.isdigit() else 0, **row} for row in own] + rows
        newest -= 1
        if not newest:
            break
    return rows
