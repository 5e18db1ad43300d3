"""What users may want to catch, and the two look-ups behind most errors: a word among choices, code behind a path.

Every error here is a ``ValueError``. Nothing here needs torch.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any


class CheckpointError(OSError, ValueError):
    """Something could not be kept on disk, or is damaged there; the message names folder, reason and cure."""


class NonFiniteError(ValueError):
    """A loss or gradient that is NaN or infinite; the message names the rows and the checkpoint that was saved."""


class RewardError(ValueError):
    """A reward that failed where ``reward_error`` is "raise"; the message names it, the prompt and the cure."""


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the key, the value and the cure."""


def check_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ``ValueError`` naming the nearest valid choice."""
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{key}={value!r} is not valid: {hint}choose one of {list(choices)}")


# ---- code behind a path ----

_loaded: set[str] = set()
"""Top-level modules that were found in a folder of the user's: the next recipe may have others of that name."""


def import_named(path: str, folders: Sequence[str | Path] = ()) -> Any:
    """What stands behind ``pkg.mod:attr``; ``attr`` may have dots.

    The module is looked for in ``folders``, then in the current folder, then where Python looks. So a user's file is found
    whether a run was started by the installed command, by ``python -m unigrpo`` or from a script, and it wins over an
    installed module of the same name.

    Raises:
        ValueError: it is no such path, leads nowhere, or its module's name is taken; the message says where it was looked for.
        ImportError: the module is there, and one of its own imports is not.
    """
    name, _, attribute = path.partition(":") if isinstance(path, str) else ("", "", "")
    if not name or not attribute or name.startswith("."):
        raise ValueError(f"{path!r} is no 'pkg.mod:attr' path")
    places = list(dict.fromkeys(str(Path(folder).absolute()) for folder in (*folders, ".")))
    try:
        found = _import(name, places)
    except ModuleNotFoundError as error:
        # A dependency that is missing inside an existing module is another problem, with its own message.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"there is no module {error.name!r} in {' or '.join(places)}, nor among the installed packages"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f". Did you mean '{name}:{near[0]}'?" if near else ""
            raise ValueError(f"{name!r} ({_place(found)}) has no attribute {attribute!r}{hint}")
        found = getattr(found, part)
    return found


def _import(name: str, places: list[str]) -> Any:
    top = name.partition(".")[0]
    if top == __package__:
        return importlib.import_module(name)
    importlib.invalidate_caches()
    with _first(places):
        spec = PathFinder.find_spec(top)
        known = sys.modules.get(top)
        if known is not None and spec is not None and not _same(known, spec):
            if top not in _loaded:
                raise ValueError(
                    f"the module name {top!r} of {spec.origin or places[0]} is taken by {_place(known)}, which is in use "
                    "already: give your file another name"
                )
            for module in [module for module in sys.modules if module.partition(".")[0] == top]:
                del sys.modules[module]
        imported = importlib.import_module(name)
    if spec is not None and _home(spec) in places:
        _loaded.add(top)
    # What the module imports later, inside a function, is found too.
    sys.path += [place for place in places if place not in sys.path]
    return imported


@contextmanager
def _first(places: list[str]) -> Iterator[None]:
    """``places`` before everything else on Python's path, inside the block."""
    before = list(sys.path)
    sys.path[:0] = places
    try:
        yield
    finally:
        sys.path[:] = before


def _home(spec: ModuleSpec) -> str | None:
    """The folder that a module, or the folder of a package, lies in."""
    if spec.origin is None:
        return None
    file = Path(spec.origin)
    return str(file.parent.parent if spec.submodule_search_locations else file.parent)


def _same(module: Any, spec: ModuleSpec) -> bool:
    """Whether a module in use is the one that would be found. One that was made by hand stays."""
    file = getattr(module, "__file__", None)
    if file is not None and spec.origin is not None:
        return Path(file).resolve() == Path(spec.origin).resolve()
    own = getattr(module, "__spec__", None)
    if own is None or file is not None or spec.origin is not None:
        return own is None
    return list(module.__path__) == list(spec.submodule_search_locations or [])


def _place(module: Any) -> str:
    return getattr(module, "__file__", None) or "a module without a file"
