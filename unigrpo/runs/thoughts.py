"""``unigrpo evaluate --thoughts``: whether pictures follow the thought that they are drawn under, or the prompt beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from rich import box
from rich.progress import Progress
from rich.table import Table

from ..data.rows import task_of
from ..errors import RecipeError
from ..rollout.pipeline import Pipeline, evaluating
from ..rollout.sample import roll_out, sample_answers
from ..rollout.thoughts import thought_ids, under_given
from ..terminal import console, say
from ..training.checkpoints.files import write_json
from ..training.contact_sheet import contact_sheet
from ..training.evaluation import Accuracy, bootstrap, eval_pipeline
from .build import build_accuracy
from .recipe import Recipe
from .train import held_out_pipeline, held_out_rows


SHOWN = 6
"""Prompts on the sheet."""

Judge = Callable[[Any, Any], bool]


def evaluate_thoughts(recipe: Recipe, model: str | None = None) -> dict[str, Any]:
    """Held-out pictures of task ``r2i`` under the policy's own thoughts, an empty one, and that of another prompt.

    A row may have a column ``thought``, what should have been thought: then pictures are drawn under it too, and the thoughts of other
    prompts are these; without it they are the policy's own. The other prompt is the next one with another solution. All
    pictures of a row start from the same random numbers.

    Returns:
        what is left as ``thoughts.json`` in the recipe's output folder, beside ``images_thoughts.png``: under ``thoughts`` the
        accuracy ``of_prompt`` and ``of_thought`` of each kind, which is whether a picture is right for its prompt, and for the prompt
        that the thought belongs to.

    Raises:
        RecipeError: no held-out rows of ``r2i`` with a solution, or no ``accuracy`` for them.
        ValueError: a column ``thought`` that cannot be drawn under.
    """
    judge = build_accuracy(recipe).get("r2i")
    rows = [row for row in held_out_rows(recipe) if task_of(row) == "r2i" and row.get("solution") is not None]
    if judge is None or not rows:
        raise RecipeError(
            f"{recipe.source}: --thoughts needs eval_datasets with rows of task 'r2i' and a 'solution', and accuracy: {{r2i: pkg.mod:attr}}"
        )
    others = others_of([row["solution"] for row in rows], recipe.source)
    pipe = eval_pipeline(held_out_pipeline(recipe, rows, model))
    drawn = drawn_under(pipe, rows, others)
    path = model or recipe.model.path
    result = {"recipe": recipe.source, "model": path, "thoughts": accuracies_of(drawn, rows, others, judge)}
    own = drawn["own"][0]
    if _has_thoughts(rows):
        right = [written.strip() == row["thought"].strip() for written, row in zip(own, rows, strict=True)]
        result["thoughts_right"] = asdict(bootstrap(right))
    out = Path(pipe.args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "thoughts.json", result)
    sheet(rows, drawn, path).save(out / "images_thoughts.png")
    show(result)
    say(f"wrote {out / 'thoughts.json'} and {out / 'images_thoughts.png'}")
    return result


def others_of(solutions: list[Any], source: str) -> list[int]:
    """For each row the next one, in a circle, with another solution.

    Raises:
        RecipeError: all rows have the same one.
    """
    if all(own == solutions[0] for own in solutions):
        raise RecipeError(
            f"{source}: all {len(solutions)} held-out rows have one solution: no thought can be another's"
        )
    count, found = len(solutions), []
    for index, own in enumerate(solutions):
        found.append(
            next((index + step) % count for step in range(1, count) if solutions[(index + step) % count] != own)
        )
    return found


def drawn_under(
    pipe: Pipeline, rows: list[dict[str, Any]], others: list[int]
) -> dict[str, tuple[list[str], list[Image.Image]]]:
    """Thoughts and pictures of each kind, in order: ``own``, ``given`` where rows have a ``thought``, ``empty``, ``swapped``."""
    with Progress(console=console(error=True), transient=True) as bar:
        task = bar.add_task("answering", total=len(rows) * (4 if _has_thoughts(rows) else 3))
        starts = range(0, len(rows), pipe.args.per_device_eval_batch_size)
        batches = [list(range(len(rows)))[start : start + pipe.args.per_device_eval_batch_size] for start in starts]
        samples = []
        for own in batches:
            samples += sample_answers(pipe, [rows[index] for index in own], 0, indices=own, stream="eval")
            bar.advance(task, len(own))
        texts = [sample.thought or "" for sample in samples]
        ids = thought_ids([sample.earlier[0] for sample in samples])
        found = {"own": (texts, [sample.completion for sample in samples])}
        kinds: dict[str, list[tuple[str, Any]]] = {}
        written = list(zip(texts, ids, strict=True))
        if _has_thoughts(rows):
            written = kinds["given"] = _ids(pipe, [row["thought"] for row in rows], len(ids[0]))
        kinds["empty"] = _ids(pipe, [""] * len(rows), len(ids[0]))
        kinds["swapped"] = [written[other] for other in others]
        for kind, thoughts in kinds.items():
            pictures = []
            for own in batches:
                pictures += _pictures(pipe, [{**rows[index], "thought_ids": thoughts[index][1]} for index in own], own)
                bar.advance(task, len(own))
            found[kind] = ([text for text, _ in thoughts], pictures)
    return found


def _has_thoughts(rows: list[dict[str, Any]]) -> bool:
    return all(row.get("thought") is not None for row in rows)


def _ids(pipe: Pipeline, texts: list[str], length: int) -> list[tuple[str, Any]]:
    rows = under_given(pipe.policy, [{}] * len(texts), texts, length)
    return [(row["thought"], row["thought_ids"]) for row in rows]


def _pictures(pipe: Pipeline, rows: list[dict[str, Any]], indices: list[int]) -> list[Image.Image]:
    keys: list[tuple] = [("eval", pipe.args.seed, 0, index) for index in indices]
    with evaluating(pipe.model):
        return [rollout.completions[0] for rollout in roll_out(pipe, pipe.model, "picture", rows, keys)]


def accuracies_of(
    drawn: dict[str, tuple[list[str], list[Image.Image]]], rows: list[dict[str, Any]], others: list[int], judge: Judge
) -> dict[str, dict[str, Any]]:
    """``of_prompt`` and, of swapped thoughts, ``of_thought``, by kind."""
    found = {}
    for kind, (_, pictures) in drawn.items():
        pairs = list(zip(pictures, rows, strict=True))
        found[kind] = {"of_prompt": asdict(bootstrap([bool(judge(one, row["solution"])) for one, row in pairs]))}
        if kind == "swapped":
            right = [bool(judge(one, rows[other]["solution"])) for one, other in zip(pictures, others, strict=True)]
            found[kind]["of_thought"] = asdict(bootstrap(right))
    return found


NAMES = {
    "own": "the policy's own",
    "given": "the right one (column thought)",
    "empty": "an empty one",
    "swapped": "another prompt's",
}


def show(result: dict[str, Any]) -> None:
    """Prints the table."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("thought", "right for the prompt", "right for the thought's prompt"):
        table.add_column(name)
    for kind, own in result["thoughts"].items():
        cells = [str(Accuracy(**own[key])) if key in own else "" for key in ("of_prompt", "of_thought")]
        table.add_row(NAMES[kind], *cells)
    tables = console()
    tables.width = max(tables.width, 110)
    say(f"{result['model']}: pictures by the thought that they are drawn under")
    tables.print(table)
    if "thoughts_right" in result:
        say(f"own thoughts equal to the right ones: {Accuracy(**result['thoughts_right'])}")


def sheet(
    rows: list[dict[str, Any]], drawn: dict[str, tuple[list[str], list[Image.Image]]], title: str
) -> Image.Image:
    """The first prompts, a picture of each kind with its thought below."""
    count = min(SHOWN, len(rows))
    return contact_sheet(
        [[pictures[index] for _, pictures in drawn.values()] for index in range(count)],
        row_labels=[str(row["prompt"]) for row in rows[:count]],
        column_labels=[NAMES[kind] for kind in drawn],
        captions=[[texts[index] for texts, _ in drawn.values()] for index in range(count)],
        title=title,
        cell=128,
    )
