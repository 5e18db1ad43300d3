"""The rows of an evaluation task: read, renamed, asked in its words, and known by a fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ...data.rows import image_of, shows_image
from ...errors import RecipeError, import_named
from ...rollout.rewards import RewardSet
from ...types import IMAGE_IN, Sample
from ..dataset_spec import DatasetSpec, load_rows
from .layouts import LAYOUTS
from .task import EvalTask


class Rows(Sequence):
    """Rows of a task as a policy and a judge read them: ``prompt``, ``task``, ``solution`` and whatever else they have.

    Args:
        name, task: the task.
        data: its rows, with our column names.
        template: what the prompt is made of.
    """

    def __init__(self, name: str, task: EvalTask, data: Any, template: str) -> None:
        self.name, self.task, self.template, self._data = name, task, template, data
        self._prepare = import_named(task.prepare) if task.prepare else None

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        row = dict(self._data[index])
        try:
            row = row if self._prepare is None else self._prepare(row)
            prompt = row["prompt"] if self.template == "{prompt}" else self.template.format_map(row)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"task {self.name}, row {index}: {type(error).__name__}: {error}; mend or drop it"
            ) from error
        return {**row, "prompt": prompt, "task": self.task.task}

    def fingerprint(self) -> str:
        """Hexadecimal digest of all rows, pictures too, in their order."""
        digest = hashlib.blake2b(digest_size=16)
        for row in self:
            for key in sorted(row):
                digest.update(key.encode() + b"\0")
                for value in _pictures(row[key]) if key in ("image", "images") else [row[key]]:
                    digest.update(_bytes(value, key in ("image", "images")) + b"\1")
        return digest.hexdigest()


def _pictures(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _bytes(value: Any, picture: bool) -> bytes:
    """What a value of a row holds; a ``picture`` of any kind by its content, wherever its file lies."""
    if isinstance(value, Image.Image):
        return value.tobytes()
    if isinstance(value, dict) and value.get("bytes") is not None:
        return bytes(value["bytes"])
    path = value.get("path") if isinstance(value, dict) else value
    if picture and isinstance(path, str) and os.path.isfile(path):
        return Path(path).read_bytes()
    return value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, default=str).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A task of one evaluation: its rows, its judge, and how many answers each row gets."""

    name: str
    task: EvalTask
    source: DatasetSpec
    rows: Rows
    judge: Callable | None
    num_samples: int

    @property
    def rewards(self) -> RewardSet:
        """The judge alone, as scores are asked for."""
        return RewardSet(functions=[self.judge or _no_judge])

    def identity(self) -> dict[str, Any]:
        """What its number depends on, beside the policy."""
        own = self.source
        judge = dict(self.task.judge) if isinstance(self.task.judge, dict) else self.task.judge
        dataset = {"path": own.path, "name": own.name, "split": own.split}
        return {
            "dataset": {**dataset, "rows": len(self.rows), "fingerprint": self.rows.fingerprint()},
            "template": self.rows.template,
            "judge": judge,
            "num_samples": self.num_samples,
        }


def _no_judge(completions: list, **_: Any) -> list[None]:
    return [None] * len(completions)


def read_rows(
    name: str, task: EvalTask, path: str | None = None, limit: int | None = None
) -> tuple[DatasetSpec, Rows]:
    """The rows of a task, from where it has them or from ``path``, and where that is.

    Rows with our own columns, ``prompt`` among them, are taken as they are.

    Raises:
        ValueError: there are none, or they lack a column; it names task, path and cure.
    """
    spec = DatasetSpec(path=path or task.path, name=task.config, split=task.split, task=task.task, limit=limit)
    if not spec.path:
        raise ValueError(f"task {name} has no rows of its own: give a file, as in --data {name}=rows.csv")
    if path is not None and not spec.on_hub:
        spec = replace(spec, name=None, split=task.split.partition("[")[0])
    try:
        data = LAYOUTS[task.layout].read(spec) if task.layout else load_rows(spec)
    except ValueError as error:
        cure = f"; give other rows with --data {name}=PATH" if path is None and spec.on_hub else ""
        raise type(error)(f"task {name}: {error}{cure}") from error
    if not len(data):
        raise ValueError(f"task {name}: {spec.path!r} has no rows")
    renaming = {theirs: ours for ours, theirs in task.columns.items() if theirs in data.column_names}
    data = data.rename_columns({theirs: ours for theirs, ours in renaming.items() if ours not in data.column_names})
    there = set(data.column_names)
    own = "prompt" in there and not set(task.reads) <= there
    template = "{prompt}" if own else task.template
    wanted = [*(("prompt",) if own else task.reads), *task.columns]
    wanted += ["image"] if task.task in IMAGE_IN and "images" not in there else []
    lacking = [task.columns.get(column, column) for column in wanted if column not in there]
    if lacking:
        raise RecipeError(
            f"task {name}: {spec.path!r} has no column {lacking[0]!r}, only {sorted(there - {'task'})}: rename one, or give other rows "
            f"with --data {name}=PATH"
        )
    return spec, Rows(name, task, data, template)


def check_golds(asked: Asked) -> int:
    """How many rows of a text task its judge cannot read; each is asked about an empty answer, without a model.

    Raises:
        ValueError: a column that it needs is not there, a solution that is none, or not one row can be judged.
    """
    reads_model = hasattr(asked.judge, "without_weights")
    if asked.judge is None or reads_model or asked.task.task not in ("text", "mmu"):
        return 0
    rewards, unread, size = asked.rewards, 0, 256
    for start in range(0, len(asked.rows), size):
        rows = [asked.rows[index] for index in range(start, min(start + size, len(asked.rows)))]
        own = [Sample(row=row, completion="", completion_ids=[], task=asked.task.task) for row in rows]
        try:
            unread += int(rewards.score(own).values.isnan().sum())
        except ValueError as error:
            raise ValueError(f"task {asked.name}: {error}") from error
    if unread == len(asked.rows):
        raise ValueError(
            f"task {asked.name}: the judge can read no solution of {asked.source.path!r}, such as {rows[0].get('solution')!r}"
        )
    return unread


def check_pictures(asked: Asked) -> None:
    """Raises ``ValueError`` for the first row whose picture cannot be read."""
    for index in range(len(asked.rows)) if asked.task.task in (*IMAGE_IN, "r2i") else ():
        row = asked.rows[index]
        if shows_image(row):
            image_of(row, f"task {asked.name}, row {index}")
