"""A recipe's file: where it is, its mapping with what the command line says over it, the paths in it that lie beside it."""

from __future__ import annotations

import difflib
from glob import has_magic, iglob
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from . import packaged
from .allowed_hosts import refuse_hosts
from .bounded_yaml import MAX_DEPTH, MAX_TEXT, YamlError, quoted, read_yaml
from .dataset_spec import DatasetSpec


def parse_yaml(text: str, where: str) -> Any:
    """Safe YAML of bounded size.

    Raises:
        RecipeError: text that is not YAML, or grows beyond what a recipe needs.
    """
    try:
        return read_yaml(text)
    except YamlError as error:
        raise RecipeError(f"{where}: {error}") from error


def read_recipe(path: str | Path, overrides: list[str] | None = None) -> tuple[dict[str, Any], str, Path]:
    """A recipe's mapping with its overrides, what it is called, and the folder that it is read in.

    Raises:
        RecipeError: a file that is missing, no text or not YAML.
    """
    file, source = find_recipe(str(path))
    data = parse_yaml(_text(file), source)
    if not isinstance(data, dict):
        raise RecipeError(f"{source}: a recipe is a mapping of keys, got {type(data).__name__}")
    refuse_hosts(data, source)
    _look_beside(data, file.parent)
    for override in overrides or []:
        set_key(data, override)
    return data, source, file.parent


def find_recipe(path: str) -> tuple[Path, str]:
    """The file of a recipe, and what it is called: a path, the same without ``.yaml``, or the name of a shipped one.

    Raises:
        RecipeError: there is none.
    """
    try:
        own = next((own for own in (Path(path), Path(f"{path}.yaml")) if own.is_file()), None)
    except (OSError, ValueError) as error:
        raise RecipeError(f"recipe {quoted(path)} cannot be read: {error}") from error
    if own is not None:
        return own, str(own)
    shipped = packaged.find(path)
    if shipped is not None:
        return shipped, path
    if path in packaged.launch_files():
        raise RecipeError(
            f"{path!r} is a launch file, not a recipe: `unigrpo recipes copy {path}`, then accelerate launch"
        )
    near = difflib.get_close_matches(Path(path).stem, packaged.names(), n=1)
    hint = f"did you mean {near[0]!r}, which ships with the package? " if near else ""
    raise RecipeError(f"recipe {quoted(path)} is not a file: {hint}`unigrpo recipes` lists the shipped ones")


def _text(file: Path) -> str:
    """A recipe's text; a file that can be none is not read."""
    path = str(file)
    try:
        size = file.stat().st_size
        if size > 4 * MAX_TEXT:
            raise RecipeError(f"recipe {path!r} has {size:,} bytes, and at most {MAX_TEXT:,} characters are read")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path!r} cannot be read: {error}") from error


FILE_KEYS = ("image_tokenizer", "deepspeed", "fsdp_config", "accelerator_config")
"""Keys of a run that may hold a path to read."""


def _look_beside(data: dict[str, Any], folder: Path) -> None:
    """Paths in a recipe's file that lie beside it become paths from the current folder.

    Those of the model, the datasets, ``FILE_KEYS`` and the ``model`` of a reward; what is written, ``output_dir``, is not.
    """

    def replaced(values: Any, *keys: str) -> None:
        if isinstance(values, dict):
            values |= {key: _beside(values[key], folder) for key in keys if key in values}

    replaced(data.get("model"), "path")
    for section in ("datasets", "eval_datasets", "sft_datasets", "rewards"):
        entries = data.get(section)
        for entry in entries if isinstance(entries, list) else []:
            of_reward = section == "rewards" and isinstance(entry, dict)
            replaced(entry.get("args") if of_reward else entry, *(("model",) if of_reward else DatasetSpec.PATHS))
    replaced(data, *FILE_KEYS)


def _beside(path: Any, folder: Path) -> Any:
    if isinstance(path, list):
        return [_beside(own, folder) for own in path]
    if not isinstance(path, str) or folder == Path() or Path(path).is_absolute():
        return path
    try:
        there = (folder / path).exists() or (has_magic(path) and any(iglob(str(folder / path), recursive=True)))
        return str(folder / path) if there else path
    except (OSError, ValueError):  # A name that is too long, or no name.
        return path


def set_key(data: dict[str, Any], override: str) -> None:
    """Sets ``a.b.0.c=value`` in place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {quoted(override)} is not of the form key=value")
    value = parse_yaml(text, f"override {quoted(key)}")
    *parents, last = key.split(".")
    if len(parents) >= MAX_DEPTH:
        raise RecipeError(f"override {quoted(key)} has {len(parents) + 1} parts, and at most {MAX_DEPTH} are read")
    node: Any = data
    for part in parents:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = node[_place(node, part, override)]
    node[_place(node, last, override)] = value


def _place(node: Any, part: str, override: str) -> Any:
    if isinstance(node, dict):
        return part
    if isinstance(node, list) and part in map(str, range(len(node))):
        return int(part)
    raise RecipeError(f"override {quoted(override)}: {quoted(part)} is not a place in the recipe")
