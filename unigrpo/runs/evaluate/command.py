"""``unigrpo evaluate MODEL_OR_RECIPE --tasks A,B``: from the words of the command line to ``results.json``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ...errors import CheckpointError
from ...terminal import say, tracked
from ...training.checkpoints.files import append_line, named, write_json
from ..train import versions
from .answering import answer, batches, check_task, wanted
from .folder import RESULTS, default_name, gather, key_of, part, read_results, save_picture, settle
from .layouts import LAYOUTS
from .pictures import diversity
from .policy import Source, load_pipeline, open_source
from .rows import Asked, check_golds, check_pictures, read_rows
from .show import show
from .summaries import summary
from .task import EvalTask, build_judge, find_task
from .tasks import TASKS


FORMAT = 1


def evaluate_tasks(
    word: str,
    tasks: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    data: dict[str, str] | None = None,
    model: str | None = None,
    adapter: str | None = None,
    limit: int | None = None,
    num_samples: int | None = None,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Measures a policy on ``tasks``, and leaves ``results.json``, ``answers.jsonl`` and ``images/``.

    Called again with the same settings, it goes on from the answers that are there. Under a launcher the processes share the rows, with
    the same results.

    Args:
        word: a recipe, whose model and sampling are used, or a model: hub id, folder, adapter's folder, ``builtin:NAME``.
        tasks: names in ``TASKS``, or ``pkg.mod:attr`` of an ``EvalTask``.
        overrides: ``key=value`` words as for a recipe: ``seed=1``, ``temperature=0.8``, ``steps=32``, ``block_length=8``.
        data: where a task's rows are read, in place of its own.
        model, adapter: as in ``open_source``.
        limit: rows of each task, from the first on.
        num_samples: answers to each row; default the task's own.
        output_dir: default ``runs/evaluations/NAME``.

    Returns:
        what ``results.json`` holds.

    Raises:
        ValueError: what is asked for cannot be done; found before weights are loaded, where it can be.
        CheckpointError: ``output_dir`` holds another evaluation, or is in use.
    """
    if not tasks:
        raise ValueError(f"--tasks names none: choose some of {','.join(TASKS)}, or give pkg.mod:attr")
    own_dir = [one.partition("=")[2] for one in overrides if one.startswith("output_dir=")]
    source = open_source(
        word, [one for one in overrides if not one.startswith("output_dir=")], model=model, adapter=adapter
    )
    asked = [ask(name, data or {}, limit, num_samples) for name in dict.fromkeys(tasks)]
    check_known(data or {}, asked)
    check_samples(source, asked)
    identity = identity_of(source, asked, limit)
    with ExitStack() as lock:
        folder = _shared_folder(output_dir or (own_dir or [None])[-1], source.path, identity, lock)
        known = read_results(folder) or identity
        if not known.get("finished"):
            started = time.perf_counter()
            _answer_all(folder, source, asked)
            known = _finish(folder, identity, asked, known.get("seconds", 0.0) + time.perf_counter() - started)
        if PartialState().is_main_process:
            show(known, folder)
    return known


def ask(name: str, data: dict[str, str], limit: int | None, num_samples: int | None) -> Asked:
    """A task with its rows and its judge; what is wrong with them is said now."""
    task = find_task(name, TASKS)
    judge = build_judge(task, name)
    source, rows = read_rows(name, task, data.get(name), limit)
    asked = Asked(
        name=name, task=task, source=source, rows=rows, judge=judge, num_samples=num_samples or task.num_samples
    )
    unread = check_golds(asked)
    if unread:
        say(f"task {name}: the judge cannot read the solution of {unread} of {len(rows)} rows, which do not count")
    check_pictures(asked)
    if task.layout is not None:
        LAYOUTS[task.layout].check(asked.num_samples)
    return asked


def check_known(data: dict[str, str], asked: list[Asked]) -> None:
    """Raises ``ValueError`` for rows of a task that is not evaluated."""
    names = [own.name for own in asked]
    for name in data:
        if name not in names:
            raise ValueError(f"--data {name}=...: {name!r} is none of --tasks {','.join(names)}")


def check_samples(source: Source, asked: list[Asked]) -> None:
    """Raises ``ValueError`` where all answers to a row would be one and the same."""
    for own in asked:
        settings = source.settings([own.task.task])
        greedy = all(
            span.get("temperature") == 0 and span.get("remasking", "low_confidence") == "low_confidence"
            for name, span in settings.items()
            if name != "pictures"
        )
        if own.num_samples > 1 and greedy:
            raise ValueError(
                f"task {own.name}: {own.num_samples} samples at temperature 0 are {own.num_samples} times one answer: add temperature=0.8"
            )


def identity_of(source: Source, asked: list[Asked], limit: int | None) -> dict[str, Any]:
    """What the numbers depend on; the first part of ``results.json``."""
    return {
        "format": FORMAT,
        "model": source.identity(),
        "recipe": source.recipe_name,
        "seed": source.args.seed,
        "limit": limit,
        "settings": source.settings([own.task.task for own in asked]),
        "versions": versions(),
        "tasks": {own.name: {"about": own.task.about, "task": own.task.task, **own.identity()} for own in asked},
    }


def _shared_folder(asked: str | None, path: str, identity: dict[str, Any], lock: ExitStack) -> Path:
    """The folder that the first process settles, on all processes."""
    settled: list[str | None] = [None, None]
    if PartialState().is_main_process:
        try:
            settled[0] = str(settle(asked, path, identity, lock))
        except ValueError as error:
            settled[1] = str(error)
    folder, wrong = broadcast_object_list(settled)
    if wrong is not None:
        raise CheckpointError(wrong)
    return Path(str(folder))


def _answer_all(folder: Path, source: Source, asked: list[Asked]) -> None:
    """Gives the answers that are missing; every process its share."""
    state = PartialState()
    done = {key_of(own) for own in (gather(folder) if state.is_main_process else ())}
    (done,) = broadcast_object_list([done])
    if all(not wanted(own, done) for own in asked):
        return
    if done and state.is_main_process:
        say(f"{folder}: {len(done)} answers are there, going on")
    pipe = load_pipeline(source, [own.task.task for own in asked])
    pipe = replace(pipe, rank=state.process_index, ranks=state.num_processes)
    for own in asked:
        check_task(pipe, own)
    for own in asked:
        todo = batches(pipe, own, wanted(own, done), pipe.args.per_device_eval_batch_size)
        shown = tracked(todo, f"answering {own.name}", error=True) if state.is_main_process else todo
        for batch in shown:
            lines = answer(pipe, own, batch, lambda key, picture: save_picture(folder, key, picture))
            with named(folder):
                append_line(part(folder, state.process_index), "\n".join(map(json.dumps, lines)))
    state.wait_for_everyone()


def _finish(folder: Path, identity: dict[str, Any], asked: list[Asked], seconds: float) -> dict[str, Any]:
    """Writes the numbers; all processes get them."""
    results: list[Any] = [None]
    if PartialState().is_main_process:
        answers = gather(folder)
        tasks = {
            own.name: {**identity["tasks"][own.name], **_numbers(folder, own.name, own.task, answers)} for own in asked
        }
        results[0] = {**identity, "tasks": tasks, "seconds": round(seconds, 1), "finished": True}
        with named(folder):
            for own in asked:
                _export(folder, own, answers, identity["model"]["path"])
            write_json(folder / RESULTS, results[0])
    return broadcast_object_list(results)[0]


def _export(folder: Path, own: Asked, answers: list[dict[str, Any]], model: str) -> None:
    """Leaves pictures as the benchmark's own code reads them."""
    if own.task.layout is None:
        return
    pictures: dict[int, list[Path]] = {}
    for one in answers:
        if one["task"] == own.name:
            pictures.setdefault(one["row"], []).append(folder / one["completion"])
    LAYOUTS[own.task.layout].write(folder / own.name, own.rows, pictures, default_name(model))
    say(f"wrote {folder / own.name}, as {LAYOUTS[own.task.layout].of} reads it")


def _numbers(folder: Path, name: str, task: EvalTask, answers: list[dict[str, Any]]) -> dict[str, Any]:
    own = [one for one in answers if one["task"] == name]
    return summary(task, own, diversity(folder, own))
