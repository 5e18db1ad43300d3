"""The recipes that travel with the package: found by name, listed, and copied to be changed."""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path

from ..errors import RecipeError


FOLDER = Path(__file__).parents[1] / "recipes"
"""Recipes, the prompt files that they name, and launch files of accelerate."""


def names() -> list[str]:
    """The recipes."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def launch_files() -> list[str]:
    """The files for ``accelerate launch --config_file``, as ``accelerate/NAME``."""
    return sorted(f"accelerate/{file.stem}" for file in FOLDER.glob("accelerate/*.yaml"))


def find(name: str) -> Path | None:
    """The file of a recipe's name; None where there is none."""
    return FOLDER / f"{name}.yaml" if name in names() else None


def command(name: str) -> str:
    """The command that takes a recipe, ``"train"`` or ``"sft"``, or ``"launch"`` for a launch file.

    The recipe's first line says it. Its keys do too, but to know them takes torch and transformers.
    """
    name = _known(name)
    first, _, _ = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")
    return "launch" if "/" in name else first.partition(" unigrpo ")[2].split()[0]


def line(name: str) -> str:
    """What a recipe or launch file says of itself: the first sentence below its command."""
    for text in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[1:]:
        if said := text.removeprefix("#").strip():
            return said
    return ""


def copy(name: str, folder: Path) -> list[Path]:
    """Copies a recipe, with the files beside it that it names, or a launch file into ``folder``; returns what was written.

    Raises:
        RecipeError: there is no such recipe, a file would be overwritten, or ``folder`` takes none.
    """
    file = FOLDER / f"{_known(name)}.yaml"
    sources = [file, *_named_in(file)]
    targets = [folder / (source.name if source == file else source.relative_to(FOLDER)) for source in sources]
    pairs = list(zip(sources, targets, strict=True))
    taken = [str(target) for source, target in pairs if target.exists() and not _alike(source, target)]
    if taken:
        raise RecipeError(
            f"not overwritten: {', '.join(taken)}; move that away, or copy into another folder with --to"
        )
    try:
        for source, target in pairs:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    except OSError as error:
        raise RecipeError(f"{name!r} cannot be copied into {str(folder)!r}: {error}; give another folder") from error
    return targets


def check_known(wanted: list[str]) -> None:
    """Raises ``RecipeError`` for a name that is not shipped, before anything is copied."""
    for name in wanted:
        _known(name)


def _known(name: str) -> str:
    """A recipe or launch file by its name, also by the last part of it."""
    every = (*names(), *launch_files())
    short = {own.rpartition("/")[2]: own for own in every}
    name = name.removesuffix(".yaml")
    if name in every or name in short:
        return name if name in every else short[name]
    near = difflib.get_close_matches(name, (*every, *short), n=1)
    hint = f"did you mean {short.get(near[0], near[0])!r}? " if near else ""
    raise RecipeError(f"recipe {name!r} is not shipped: {hint}`unigrpo recipes` lists what is")


def _alike(one: Path, two: Path) -> bool:
    return two.is_file() and one.read_bytes() == two.read_bytes()


def _named_in(file: Path) -> list[Path]:
    """The shipped files that a recipe's text names."""
    text = file.read_text(encoding="utf-8")
    return [own for own in sorted(FOLDER.glob("prompts/*.txt")) if own.relative_to(FOLDER).as_posix() in text]
