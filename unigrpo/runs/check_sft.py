"""``unigrpo check`` of a recipe with given answers: every row is written as a run would write it, and some are shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from ..config.denoising_arguments import MaskedDenoisingConfig
from ..data.checking import MANY_ROWS
from ..data.given import given_of
from ..data.rows import read_row, task_of
from ..errors import RecipeError
from ..models import DiffusionPolicy, MagvitV2Config
from ..models.hub import asking_once
from ..terminal import Text, tracked
from ..training.given import Writer, Written
from ..types import TASKS, keyed_generator, spans_of
from .build import build_accuracy, build_lora
from .check import CodeCount, check_image_tokenizer, check_output, check_quantised, reached_rows, weightless_policy
from .dataset_spec import DatasetSpec
from .reach import code_of
from .recipe import Recipe
from .sft import config_to_check, given_rows
from .sft_held_out import build_sampling
from .shown_rows import padding_of, shown_row


SHOWN = 3
"""Rows of a task that are shown."""


@dataclass(slots=True, kw_only=True)
class Source:
    """What a dataset holds, in tokens.

    Attributes:
        rows: None where it is not reachable.
        tasks: rows of each task.
        positions, trained, padding: of all rows together; padding that is trained counts in all three.
        longest: positions of the longest row without its padding, and its index.
        first: the first rows of each task, by index.
    """

    spec: DatasetSpec
    rows: int | None = None
    tasks: Counter = field(default_factory=Counter)
    positions: int = 0
    trained: int = 0
    padding: int = 0
    longest: tuple[int, int] = (0, 0)
    first: dict[str, list[tuple[int, Written]]] = field(default_factory=dict)

    def add(self, index: int, written: Written, padding: int) -> None:
        """Counts a row."""
        task, length = written.canvas.task, int(written.canvas.attention_mask.sum())
        self.tasks[task] += 1
        self.positions += length
        self.trained += int(written.trained.sum())
        self.padding += padding
        self.longest = max(self.longest, (length - padding, index), key=lambda own: own[0])
        if len(shown := self.first.setdefault(task, [])) < SHOWN:
            shown.append((index, written))


def check_sft_recipe(recipe: Recipe, offline: bool = False) -> tuple[list[str], list[RenderableType]]:
    """Findings, one a line, for a recipe that is fit to run; then its sources in a table, and rows of each task.

    As ``check_recipe``: code that the recipe names is imported, and the hub is asked once. A model whose tokenizer is not
    reachable leaves its rows unwritten, with ``offline``.

    Raises:
        ValueError: anything that would fail later, such as a row whose answer would be cut away; the message names it.
    """
    with asking_once(offline):
        args = config_to_check(recipe)
        build_lora(recipe)
        sampling = build_sampling(recipe, args)
        if sampling is not None:
            build_accuracy(recipe)
        missing = check_quantised(recipe, args, offline)
        check_output(Path(str(args.output_dir)))
        notes = code_of(recipe) + missing
        policy, said = weightless_policy(recipe, args, offline)
        notes += said
        if policy is None:
            notes.append("rows: read, but not written, as the model's tokenizer is not there")
        return _findings(recipe, args, policy, notes, offline)


def _findings(
    recipe: Recipe, args: MaskedDenoisingConfig, policy: DiffusionPolicy | None, notes: list[str], offline: bool
) -> tuple[list[str], list[RenderableType]]:
    rows = _Rows(recipe, args, policy, offline)
    trained = [rows.read(spec) for spec in recipe.datasets]
    for spec in recipe.eval_datasets:
        rows.read(spec)
    notes = notes + rows.notes
    if rows.writer is None or not any(own.rows for own in trained):
        return notes, []
    table = _table(trained, args)
    return notes, [table, *_shown(rows.writer, trained, args.seed)]


class _Rows:
    """Reads and writes rows; what it has to say is in ``notes``.

    Raises:
        ValueError: a row that a run could not train on.
    """

    def __init__(
        self, recipe: Recipe, args: MaskedDenoisingConfig, policy: DiffusionPolicy | None, offline: bool
    ) -> None:
        self.recipe, self.args, self.offline = recipe, args, offline
        self.notes: list[str] = []
        self.writer = None
        if policy is not None:
            self.writer = Writer.of_run(policy, args, policy.config.get_text_config().vocab_size)  # type: ignore[attr-defined]

    def read(self, spec: DatasetSpec) -> Source:
        """The rows of a dataset, each of which is fit to be trained on."""
        source, name = Source(spec=spec), f"dataset {spec.path}"
        rows, said = reached_rows(spec, given_rows, self.offline)
        self.notes += said
        if rows is None:
            return source
        if not len(rows):
            raise RecipeError(f"{self.recipe.source}: {name} is empty")
        source.rows = len(rows)
        self.notes.append(f"{name}: {len(rows)} rows, columns {rows.column_names}")
        numbers = range(len(rows))
        for index in tracked(numbers, f"checking {name}") if len(rows) >= MANY_ROWS else numbers:
            where = f"{name}[{index}]"
            row = read_row(rows, index, where)
            if self.writer is None:
                given_of(row, where)
                continue
            if self.writer.codec is None and task_of(row) != "text":
                self.writer.codec = self._codec()
            written = self.writer.write(row, where, codes=False)
            source.add(index, written, int(padding_of(written, self.writer.policy).sum()))
        return source

    def _codec(self) -> Any:
        if self.writer.policy.codebook_size is None:
            return None
        sizes = dict.fromkeys(TASKS[1:], self.writer.image_size)
        config, said = check_image_tokenizer(self.recipe, self.args, sizes, self.offline)
        self.notes += said
        return CodeCount((config or MagvitV2Config()).factor)


def _table(sources: list[Source], args: MaskedDenoisingConfig) -> RenderableType:
    """How often each source comes, and how much of what is trained it brings."""
    weights: Any = args.sampling_weights or {}
    known = [own for own in sources if own.rows]
    given = [float(weights.get(f"datasets[{number}]", own.rows or 0)) for number, own in enumerate(sources)]
    brought = [share * own.trained / (own.rows or 1) for share, own in zip(given, sources, strict=True)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("source", "rows", "drawn", "trained", "padding", "of all", "longest"):
        table.add_column(
            name, justify="left" if name == "source" else "right", overflow="fold", no_wrap=name != "source"
        )
    complete = len(known) == len(sources)
    for number, (own, share, part) in enumerate(zip(sources, given, brought, strict=True)):
        tasks = ", ".join(own.tasks) or "not reachable"
        drawn = _percent(share, sum(given)) if complete or weights else "-"
        cells = [f"{own.rows:,}", drawn, _percent(own.trained, own.positions), _percent(own.padding, own.trained)]
        cells += [_percent(part, sum(brought)) if complete else "-", f"{own.longest[0]:,} at [{own.longest[1]}]"]
        cells = cells if own.rows else ["-", drawn, "-", "-", "-", "-"]
        table.add_row(f"datasets[{number}] {own.spec.path} ({tasks})", *cells)
    legend = (
        "drawn: share of the rows of a step; trained: of a source's positions; padding: of what is trained there; of all: share of "
        f"all trained tokens of a step; longest: tokens of the longest row, max_length is {args.max_length:,}"
    )
    return Group(table, Text(legend, "dim"))


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def _shown(writer: Writer, sources: list[Source], seed: int) -> list[RenderableType]:
    """The first rows of each task, of every source in turn."""
    shown = []
    for task in TASKS:
        queues = [(number, list(own.first.get(task, []))) for number, own in enumerate(sources)]
        rows = [(number, *queue[turn]) for turn in range(SHOWN) for number, queue in queues if turn < len(queue)]
        for number, index, written in rows[:SHOWN]:
            where = f"datasets[{number}][{index}]"
            generator = keyed_generator("check", seed, number, index)
            spans = (
                [writer.one_span(written, own) for own in spans_of(task)]
                if task == "r2i" and writer.by_span
                else [written]
            )
            for own in spans:
                shown.append(shown_row(writer.policy, own, writer.objectives[own.canvas.task], where, generator))
    return shown
