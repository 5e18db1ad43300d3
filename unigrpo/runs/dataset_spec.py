"""What a recipe says of a dataset, and the rows that it means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..data.columns import as_mapping, meant
from ..data.files import beside, is_on_hub, open_rows
from ..data.gym import GYM, problems
from ..data.rows import as_prompts, undecoded
from ..errors import RecipeError, SourceError, import_named
from ..models.builtin import BUILTIN
from .bounded_yaml import quoted


@dataclass(slots=True, kw_only=True)
class DatasetSpec:
    """``path`` and ``data_files`` are as in ``data.files.open_rows``, or ``builtin:NAME`` or ``reasoning_gym:TASK``.

    ``column_map`` is ``{our column: theirs}``, ``limit`` keeps the first rows, ``prompt`` is one prompt for all rows,
    ``image_folder`` is where pictures lie that are named by relative paths, ``image_transform`` how pictures get the model's size:
    ``squash``, ``crop`` or ``pad``.
    """

    TYPES: ClassVar[dict[str, tuple[type, ...]]] = {
        "path": (str, list),
        "data_files": (str, list, dict, type(None)),
        "limit": (int, type(None)),
        "column_map": (dict,),
    }
    PATHS: ClassVar[tuple[str, ...]] = ("path", "data_files", "image_folder")

    path: str | list[str]
    name: str | None = None
    split: str = "train"
    data_files: str | list[str] | dict[str, Any] | None = None
    task: str | None = None
    column_map: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    prompt: str | None = None
    image_folder: str | None = None
    image_transform: str | None = None

    @property
    def shipped(self) -> str | None:
        """The name behind ``builtin:``; None for others."""
        return (
            self.path.removeprefix(BUILTIN) if isinstance(self.path, str) and self.path.startswith(BUILTIN) else None
        )

    @property
    def paths(self) -> list[str]:
        """``path`` as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path)

    @property
    def on_hub(self) -> bool:
        """Whether the hub is asked for it."""
        made = self.shipped is not None or (isinstance(self.path, str) and self.path.startswith(GYM))
        return not made and is_on_hub(self.path)


DRAWN = {"t2i": "image", "i2i": "edited_image"}
"""The column with the given answer of tasks that draw one."""

BUILTIN_SETS = {
    "arithmetic": "unigrpo.toy.arithmetic:problems",
    "countdown": "unigrpo.toy.countdown:problems",
    "emoji": "unigrpo.toy.emoji:problems",
    "riddles": "unigrpo.toy.riddles:problems",
    "running_sums": "unigrpo.toy.running_sums:problems",
    "shapes": "unigrpo.toy.shapes:problems",
    "sudoku": "unigrpo.toy.sudoku:problems",
}
"""``builtin:NAME`` as a dataset -> the function ``(split, limit) -> rows`` that makes it. Imported when it is asked for."""

BUILTIN_TASKS = {
    ("shapes", "mmu"): "unigrpo.toy.shapes:questions",
    ("emoji", "r2i"): "unigrpo.toy.emoji_riddles:problems",
}
"""The same for NAME and a task that has rows of its own."""

BUILTIN_LESSONS: dict[tuple[str, str | None], dict[str | None, str]] = {
    ("arithmetic", None): {
        None: "unigrpo.toy.arithmetic:lessons",
        "careless": "unigrpo.toy.arithmetic:careless_lessons",
    },
    ("countdown", None): {
        None: "unigrpo.toy.countdown:lessons",
        "careless": "unigrpo.toy.countdown:careless_lessons",
    },
    ("emoji", None): {
        None: "unigrpo.toy.emoji_lessons:pictures",
        "careless": "unigrpo.toy.emoji_lessons:careless_pictures",
    },
    ("emoji", "r2i"): {
        None: "unigrpo.toy.emoji_riddles:lessons",
        "careless": "unigrpo.toy.emoji_riddles:careless_lessons",
    },
    ("riddles", None): {None: "unigrpo.toy.riddles:lessons", "careless": "unigrpo.toy.riddles:careless_lessons"},
    ("running_sums", None): {None: "unigrpo.toy.running_sums:lessons"},
    ("shapes", None): {
        None: "unigrpo.toy.shapes_lessons:pictures",
        "careless": "unigrpo.toy.shapes_lessons:careless_pictures",
    },
    ("shapes", "mmu"): {
        None: "unigrpo.toy.shapes_lessons:answers",
        "careless": "unigrpo.toy.shapes_lessons:careless_answers",
    },
    ("shapes", "text"): {"careless": "unigrpo.toy.shapes_lessons:careless_sums"},
    ("sudoku", None): {None: "unigrpo.toy.sudoku:lessons", "careless": "unigrpo.toy.sudoku:careless_lessons"},
}
"""The same for rows with given answers: NAME and task, None for every other -> teachers by the dataset's ``name``."""


def load_rows(spec: DatasetSpec, given: bool = False) -> Any:
    """One dataset with our column names. Shipped ones have answers where they are ``given``.

    Raises:
        RecipeError: it cannot be read, an unknown shipped set, or a column that is not there.
        SourceError: there is nothing at its path.
    """
    if spec.shipped is not None:
        rows = _made(spec, lambda: _builtin(spec, str(spec.shipped), given)(spec.split, spec.limit))
    elif isinstance(spec.path, str) and spec.path.startswith(GYM):
        rows = _made(spec, lambda: problems(str(spec.path).removeprefix(GYM), spec.split, spec.limit))
    else:
        try:
            rows = open_rows(spec.path, name=spec.name, split=spec.split, data_files=spec.data_files)
        except SourceError:
            raise
        except ValueError as error:
            raise RecipeError(str(error)) from error
        if spec.limit is not None:
            rows = rows.select(range(min(spec.limit, len(rows))))
    return undecoded(beside(_renamed(rows, spec), spec.path, spec.image_folder))


def prompt_rows(spec: DatasetSpec, given: bool = False) -> Any:
    """``load_rows`` for a run that samples answers: chats are prompts.

    Args:
        given: the rows have answers too, for the auxiliary loss.

    Raises:
        RecipeError: rows without a prompt; the message has the ``column_map`` that is probably meant.
    """
    rows = as_prompts(load_rows(spec, given))
    answer = "solution" if not given else DRAWN.get(spec.task, "completion")
    lacking = "prompt" not in rows.column_names or (given and answer not in rows.column_names)
    if lacking:
        raise _lacks(spec, rows, ("prompt", answer))
    return rows


def check_given_columns(spec: DatasetSpec, rows: Any) -> None:
    """Raises ``RecipeError`` for rows in none of the forms of ``data.given``, with the ``column_map`` that is probably meant."""
    columns = set(rows.column_names)
    if not columns & {"messages", "conversations", "text", "prompt"}:
        raise _lacks(spec, rows, ("prompt", DRAWN.get(spec.task, "completion")))
    if (
        "prompt" in columns
        and spec.task not in DRAWN
        and not columns & {"messages", "conversations", "completion", "task"}
    ):
        raise _lacks(spec, rows, ("prompt", "completion"))


def _lacks(spec: DatasetSpec, rows: Any, wanted: tuple[str, str]) -> RecipeError:
    columns = rows.column_names
    found = {**spec.column_map, **meant(columns, wanted)}
    missing = [ours for ours in wanted if ours not in columns and ours != "solution"]
    cure = f"write column_map: {as_mapping(found)}" if found else "say with column_map: {ours: theirs} which they are"
    return RecipeError(
        f"dataset {spec.path!r} has no column {' or '.join(map(repr, missing))}, only {columns}; {cure}"
    )


def _builtin(spec: DatasetSpec, name: str, given: bool) -> Callable[[str, int | None], list[dict[str, Any]]]:
    """What makes the rows of a shipped set."""
    if name not in BUILTIN_SETS:
        shipped = [BUILTIN + own for own in BUILTIN_SETS]
        raise RecipeError(f"dataset path {spec.path!r} is unknown: shipped sets are {shipped}")
    if not given:
        return import_named(BUILTIN_TASKS.get((name, spec.task or ""), BUILTIN_SETS[name]))
    teachers = BUILTIN_LESSONS.get((name, spec.task)) or BUILTIN_LESSONS[name, None]
    if spec.name not in teachers:
        raise RecipeError(f"dataset {spec.path!r}: name={quoted(spec.name)}: choose one of {list(teachers)}")
    return import_named(teachers[spec.name])


def _made(spec: DatasetSpec, make: Any) -> Any:
    from datasets import Dataset

    try:
        return Dataset.from_list(make())
    except ValueError as error:
        raise RecipeError(f"dataset {spec.path!r}: {error}") from error


def _renamed(rows: Any, spec: DatasetSpec) -> Any:
    missing = [theirs for theirs in spec.column_map.values() if theirs not in rows.column_names]
    if missing:
        raise RecipeError(f"dataset {spec.path!r}: column_map names {missing}, its columns are {rows.column_names}")
    named = {
        theirs: [own for own, other in spec.column_map.items() if other == theirs]
        for theirs in spec.column_map.values()
    }
    for theirs, ours in named.items():
        if len(ours) > 1:
            raise RecipeError(
                f"dataset {spec.path!r}: column_map gives {theirs!r} several names, {ours}: a column has one; let what reads it read "
                f"{ours[0]!r}"
            )
    rows = rows.remove_columns([own for own in spec.column_map if own in rows.column_names and own not in named])
    rows = rows.rename_columns({theirs: ours for theirs, (ours,) in named.items() if ours != theirs})
    for name, value in (("task", spec.task), ("prompt", spec.prompt), ("image_transform", spec.image_transform)):
        if value is not None:
            rows = rows.remove_columns(name) if name in rows.column_names else rows
            rows = rows.add_column(name, [value] * len(rows))
    return rows
