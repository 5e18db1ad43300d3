"""``unigrpo report FOLDER``: the page written, and answers made for it where they are asked for."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...terminal import say
from ...training.checkpoints.files import write_text
from .page import page
from .read import RunFolder, read_folder


if TYPE_CHECKING:
    from ..recipe import Recipe


PAGE = "report.html"


def report(folder: str, output: str | None = None, *, overwrite: bool = False, denoise: int = 0) -> Path:
    """Writes the page of a run's or an evaluation's folder; returns its path.

    Args:
        output: the file, ``report.html`` in the folder by default.
        overwrite: replaces a file that exists.
        denoise: held-out answers of each task that the weights in the folder write again, to be watched step by step.

    Raises:
        ValueError: nothing of ours is in the folder, the file exists or cannot be written, or ``denoise`` finds no weights or rows.
    """
    if denoise < 0:
        raise ValueError(f"--denoise {denoise}: give a number of answers, 0 for none")
    found = read_folder(folder)
    path = Path(output) if output is not None else found.path / PAGE
    if path.is_dir():
        raise ValueError(f"--output {str(path)!r} is a folder: name a file, such as {path / PAGE}")
    if path.exists() and not overwrite:
        raise ValueError(f"{str(path)!r} exists already: name another file with --output, or add --overwrite")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"{str(path)!r} cannot be written: {str(path.parent)!r} is no folder that takes files")
    made = {"from the weights in the folder": denoise_again(found, denoise)} if denoise else None
    try:
        write_text(path, page(found, made))
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} cannot be written ({error.strerror}): name another file with --output"
        ) from None
    say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB; it asks no network: open it in a browser)")
    return path


def denoise_again(folder: RunFolder, count: int) -> list[dict[str, Any]]:
    """``count`` held-out answers of each task, written by the weights in the folder with the run's own settings.

    Raises:
        ValueError: the folder has no weights, or the run's recipe is not there or has no held-out rows.
    """
    from ...data.rows import task_of
    from ...models.checkpoint_files import weights_in
    from ...training.evaluation import held_out_answers
    from ..denoising import denoising
    from ..train import held_out_pipeline, held_out_rows

    recipe = recipe_of(folder)
    if not weights_in(folder.path):
        raise ValueError(
            f"--denoise: {str(folder.path)!r} holds no weights; they are written when a run comes to its end"
        )
    kept: dict[str, list[dict[str, Any]]] = {}
    for row in held_out_rows(recipe):
        own = kept.setdefault(task_of(row), [])
        if len(own) < count:
            own.append(row)
    rows = [row for own in kept.values() for row in own]
    pipe = held_out_pipeline(recipe, rows, str(folder.path))
    return denoising(held_out_answers(pipe, rows, 1, pipe.args.per_device_eval_batch_size), pipe.policy, count)


def recipe_of(folder: RunFolder) -> Recipe:
    """The recipe that a run was started with, overrides included.

    Raises:
        ValueError: it is not known, not there, or not one of `unigrpo train`.
    """
    from ..recipe import load_recipe

    if folder.kind != "train":
        raise ValueError(
            f"--denoise answers by a recipe with rewards, and {str(folder.path)!r} is a folder of {folder.kind}: leave it out"
        )
    words = folder.about.get("overrides")
    if not folder.about.get("recipe"):
        raise ValueError(f"--denoise: {str(folder.path)!r} does not say which recipe made it; leave it out")
    shown = [str(word) for word in words] if isinstance(words, list) else []
    recipe = load_recipe(str(folder.about["recipe"]), [word for word in shown if "=***" not in word])
    return replace(recipe, config={**recipe.config, "output_dir": str(folder.path)})
