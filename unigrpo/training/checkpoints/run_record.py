"""Which run wrote a folder or a checkpoint, and what that run is: ``unigrpo_run.json``."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .files import write_json


RECORD = "unigrpo_run.json"
"""In a run's folder and in each of its checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The identity of a run.

    Attributes:
        run_id: 12 hexadecimal digits, drawn when the run first starts; it keeps them when it is resumed.
        kept: what it keeps to its end (``identity.described``), JSON.
        told: what may change on the way, with a warning, JSON.
        about: names for a reader, which are not compared.
        files: weights and what belongs to them that the run left beside its checkpoints, as ``files.describe`` has them.
    """

    run_id: str
    kept: dict[str, Any]
    told: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """The same for runs that are the same: 16 hexadecimal digits of ``kept`` and ``told``."""
        text = json.dumps([self.kept, self.told], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def identity(self) -> dict[str, str]:
        """What logs and summaries say of the run."""
        return {"run_id": self.run_id, "fingerprint": self.fingerprint}


def new_run_id() -> str:
    return uuid.uuid4().hex[:12]


def write_record(folder: Path, record: RunRecord) -> None:
    write_json(folder / RECORD, {"format": 1, "fingerprint": record.fingerprint, **asdict(record)})


def read_record(folder: str | Path) -> RunRecord | None:
    """The record in ``folder``; None where there is none, or none that can be read."""
    try:
        data = json.loads((Path(folder) / RECORD).read_text())
        record = RunRecord(**{name: data[name] for name in RunRecord.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    mappings = (record.kept, record.told, record.about, record.files)
    return record if all(isinstance(own, dict) for own in mappings) and isinstance(record.run_id, str) else None


def changes(stored: dict[str, Any], own: dict[str, Any]) -> list[str]:
    """``key was X and is Y`` for all that differs; a key that one of the two lacks belongs to another version."""
    found = []
    for name in stored.keys() & own.keys():
        old, new = stored[name], own[name]
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{name}.{change}" for change in changes(old, new)]
        elif old != new:
            found.append(f"{name} was {_shown(old)} and is {_shown(new)}")
    return sorted(found)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) and " " in value else json.dumps(value)
    return text if len(text) <= 200 else text[:200] + " ..."
