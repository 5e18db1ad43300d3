"""``unigrpo reproduce NAME``: stages that go on where an earlier start was stopped, and the card at their end."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ...terminal import say
from ...training.checkpoints.files import check_writable, named, write_json
from ...training.checkpoints.run_record import changes, read_record
from ..again import shown_words
from ..recipe import Recipe
from ..report.read import SUMMARY, read_folder, read_json
from .card import CARD, make_card, recipe_of, seal, settings_of
from .pictures import write_pictures
from .plan import plan, stages
from .table import Budget, chosen


START, RUN = "reproduce.json", "run"
"""What a folder reproduces, and the folder of its run."""


def plan_of(name: str, budget: str | None, words: Sequence[str]) -> list[str]:
    """The lines of ``--plan``."""
    own, budget_name, spent = chosen(name, budget)
    lines = plan(name, own, budget_name, spent, recipe_of(name, spent, list(words)))
    return [*lines, f"  to start or go on: {_command(name, budget_name, spent, words)}"]


def _command(name: str, budget_name: str, budget: Budget, words: Sequence[str]) -> str:
    start = "unigrpo" if budget.processes == 1 else f"accelerate launch --num_processes {budget.processes} -m unigrpo"
    return " ".join([f"{start} reproduce {name} --budget {budget_name}", *shown_words(words)])


def reproduce(
    name: str, budget: str | None = None, words: Sequence[str] = (), output_dir: str | None = None
) -> dict[str, Any]:
    """Measures, trains, measures again and leaves the card in ``output_dir``; what an earlier start has done is not done again.

    Returns:
        the card.

    Raises:
        ValueError: an unknown name or budget, a folder that reproduces something else, or another number of processes.
    """
    own, budget_name, spent = chosen(name, budget)
    out = Path(output_dir or f"runs/reproduce-{name}-{budget_name}")
    taken = [word for word in words if word.split("=")[0] in ("output_dir", "overwrite", "resume_from_checkpoint")]
    if taken:
        raise ValueError(
            f"{taken[0]!r}: a reproduction has its own folder and goes on by itself; name it with --output-dir"
        )
    run_words = [*words, f"output_dir={out / RUN}", "resume_from_checkpoint=true"]
    recipe = recipe_of(name, spent, run_words)
    state = PartialState(cpu=bool(recipe.config.get("use_cpu")))
    if state.num_processes != spent.processes:
        raise ValueError(
            f"budget {budget_name!r} is for {spent.processes} processes, and these are {state.num_processes}: "
            f"start `{_command(name, budget_name, spent, words)}`"
        )
    if state.is_main_process:
        _claim(out, {"name": name, "budget": budget_name, "settings": settings_of(recipe)})
    state.wait_for_everyone()
    card = read_json(out / CARD)
    if card and card.get("hash") == seal(card):
        say(f"{out / CARD} is there already: {card['verdict']}")
        return card
    if state.is_main_process:
        for line in progress(out, stages(own, spent, recipe)):
            say(line)
    folder = f" --output-dir {shlex.quote(str(out))}" if output_dir else ""
    summary = _run(recipe, out / RUN, _command(name, budget_name, spent, words) + folder)
    if not state.is_main_process:
        return {}
    card = make_card(name, budget_name, spent, list(words), summary, read_record(out / RUN))
    write_pictures(card, read_folder(out / RUN), out)
    # Last: where it is there, everything is.
    with named(out / CARD):
        write_json(out / CARD, card)
    say(f"{card['verdict']}\nwrote {out / CARD}, card.html and card.png")
    return card


def _claim(out: Path, start: dict[str, Any]) -> None:
    """Notes what ``out`` reproduces; one that reproduces something else is left alone."""
    there = read_json(out / START)
    if there:
        different = [
            f"{key} was {there.get(key)} and is {start[key]}"
            for key in ("name", "budget")
            if there.get(key) != start[key]
        ]
        different += changes(there.get("settings", {}), start["settings"])
        if different:
            raise ValueError(
                f"{out} reproduces something else: {'; '.join(different[:3])}. Give the same words to go on with it, or another --output-dir"
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(
            f"--output-dir {str(out)!r} holds files and no reproduction: give an empty folder or a new name"
        )
    check_writable(out)
    write_json(out / START, json.loads(json.dumps(start)))


def progress(out: Path, texts: Sequence[str]) -> list[str]:
    """The stages with what an earlier start has done of each."""
    run = out / RUN
    found = [(run / "before.json").is_file(), (run / SUMMARY).is_file(), (run / SUMMARY).is_file(), False]
    steps = sorted(int(own.name[11:]) for own in run.glob("checkpoint-*") if own.name[11:].isdigit())
    lines = []
    for number, (text, done) in enumerate(zip(texts, found, strict=True), 1):
        at = f" (goes on from step {steps[-1]})" if number == 2 and steps and not done else ""
        lines.append(f"{number}. {text}{': done' if done else at}")
    return lines


def _run(recipe: Recipe, run: Path, go_on: str) -> dict[str, Any]:
    """The summary of the run, from its file where it has come to its end."""
    from ..train import run_recipe

    there, record = read_json(run / SUMMARY), read_record(run)
    if there and record is not None and there.get("run_id") == record.run_id:
        return there
    with warnings.catch_warnings():
        # That is every first start.
        warnings.filterwarnings("ignore", ".*has no checkpoint yet")
        return run_recipe(recipe, go_on)
