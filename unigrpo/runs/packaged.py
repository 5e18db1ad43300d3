"""The recipes that travel with the package: found by name, listed, and copied to be changed."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import RecipeError, check_choice


FOLDER = Path(__file__).parents[1] / "recipes"
"""Recipes, the prompt files that they name, and launch files of accelerate."""


def names() -> list[str]:
    """The recipes."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def launch_files() -> list[str]:
    """The files for ``accelerate launch --config_file``, as ``accelerate/NAME``."""
    return sorted(f"accelerate/{file.stem}" for file in FOLDER.glob("accelerate/*.yaml"))


def find(name: str) -> Path | None:
    """The file of a recipe's name, with or without ``.yaml``; None where there is none."""
    name = name.removesuffix(".yaml")
    return FOLDER / f"{name}.yaml" if name in names() else None


def line(name: str) -> str:
    """What a recipe or launch file says of itself: the first sentence below its command."""
    for text in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[1:]:
        if said := text.removeprefix("#").strip():
            return said
    return ""


def copy(name: str, folder: Path) -> list[Path]:
    """Copies a recipe, with the files beside it that it names, or a launch file into ``folder``; returns what was written.

    Raises:
        RecipeError: there is no such recipe, or a file would be overwritten.
    """
    name = name.removesuffix(".yaml")
    check_choice("recipe", name, (*names(), *launch_files()))
    file = FOLDER / f"{name}.yaml"
    sources = [file, *_named_in(file)]
    targets = [folder / (source.name if source == file else source.relative_to(FOLDER)) for source in sources]
    pairs = list(zip(sources, targets, strict=True))
    taken = [str(target) for source, target in pairs if target.exists() and target.read_bytes() != source.read_bytes()]
    if taken:
        raise RecipeError(
            f"{', '.join(taken)} exist and are not overwritten; move them away, or copy into another folder"
        )
    for source, target in pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return targets


def _named_in(file: Path) -> list[Path]:
    """The shipped files that a recipe's text names."""
    text = file.read_text(encoding="utf-8")
    return [own for own in sorted(FOLDER.glob("prompts/*.txt")) if own.relative_to(FOLDER).as_posix() in text]
