"""What users may want to catch, and the two look-ups behind most errors: a word among choices, code behind a path.

* ``RecipeError``: a recipe that cannot be run.
* ``SourceError``: a model, tokenizer or dataset that is not there; ``NotReachableError``: and the hub cannot be asked for it.
* ``CheckpointError``: a checkpoint that cannot be written or read.
* ``NonFiniteError``: a loss or gradient that is no number.
* ``RewardError``: a reward that ended the run; ``ReturnError``: what it returned is no list of scores.
* ``TooLongError``: a row that does not fit.
* ``Overdue``: a call that has outlived its bound.
* ``Interrupted``: Ctrl-C in a run, a ``KeyboardInterrupt``.

Every one but the last two is a ``ValueError``, as is any other mistake in what was asked for. Nothing here needs torch.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
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


class SourceError(OSError, ValueError):
    """A model, tokenizer or dataset that is not there, or gives no access; the message names it, the reason and the cure."""


class NotReachableError(SourceError):
    """An id that is not in the cache, while the hub does not answer or must not be asked."""


class ReturnError(ValueError):
    """A reward returned something else than one score an answer; the message goes on from the reward's name."""


class TooLongError(ValueError):
    """A row does not fit into the positions that there are; the message names them and the cure."""


class Overdue(Exception):
    """A call has outlived its bound."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a run; the message says what was saved and how to go on."""


def check_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ``ValueError`` naming the nearest valid choice."""
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{key}={value!r} is not valid: {hint}choose one of {list(choices)}")


# ---- code behind a path ----

_served: list[str] = []
"""Folders of the user's that were put on Python's path. The next recipe may have other modules of the same names."""


def import_named(path: str, folders: Sequence[str | Path] = ()) -> Any:
    """What stands behind ``pkg.mod:attr``; ``attr`` may have dots.

    The module is looked for in ``folders``, then in the current folder, then where Python looks. So a user's file is found
    whether a run was started by the installed command, by ``python -m unigrpo`` or from a script, and it wins over an
    installed module of the same name. A call with other folders forgets the modules that were found in the earlier ones.

    Raises:
        ValueError: it is no such path, leads nowhere, its module's name is taken, or its module raises while it is imported.
            The message says where it was looked for.
    """
    name, _, attribute = path.partition(":") if isinstance(path, str) else ("", "", "")
    if not name or not attribute or name.startswith(".") or "/" in name or name.endswith(".py"):
        raise ValueError(
            f"{path!r} is no 'pkg.mod:attr' path; for a function f in my_code.py beside the recipe, or in the current folder, "
            "write 'my_code:f'"
        )
    top = name.partition(".")[0]
    found = _own_module(name) if top == __package__ else _users_module(name, top, folders)
    where, reached = getattr(found, "__file__", None) or "a module without a file", name + ":"
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f". Did you mean '{reached}{near[0]}'?" if near else ""
            raise ValueError(f"{name!r} ({where}) has no attribute {attribute!r}{hint}")
        found, reached = getattr(found, part), f"{reached}{part}."
    return found


def _own_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"there is no module {error.name!r} in this version of unigrpo; CHANGELOG.md lists the names that moved"
        ) from error


def _users_module(name: str, top: str, folders: Sequence[str | Path]) -> Any:
    places = list(dict.fromkeys(str(Path(folder).absolute()) for folder in (*folders, ".")))
    if not set(places) <= {*_served, *_on_path()}:
        _forget()
    importlib.invalidate_caches()
    with _first(places):
        _make_way(top, places)
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                raise _not_there(error.name, top, places) from error
            raise _raised(error, name) from error
        except (Exception, SystemExit) as error:
            raise _raised(error, name) from error


def _forget() -> None:
    """Removes what was found in earlier folders, and these folders from Python's path."""
    for name, module in list(sys.modules.items()):
        if "." not in name and _home(getattr(module, "__spec__", None)) in _served:
            _drop(name)
    sys.path[:] = [place for place in sys.path if place not in _served]
    _served.clear()


def _drop(top: str) -> None:
    for own in [own for own in sys.modules if own.partition(".")[0] == top]:
        del sys.modules[own]


def _on_path() -> set[str]:
    return {str(Path(place).absolute()) for place in sys.path}


@contextmanager
def _first(places: list[str]) -> Iterator[None]:
    """``places`` before everything else on Python's path inside the block, and after everything else from then on.

    What a module imports later, inside a function, is found that way. What it puts on the path itself stays.
    """
    _served.extend(place for place in places if place not in {*_served, *_on_path()})
    sys.path[:0] = places
    try:
        yield
    finally:
        for place in places:
            sys.path.remove(place)
        sys.path += [place for place in places if place in _served and place not in sys.path]


def _make_way(top: str, places: list[str]) -> None:
    """A user's module that was imported from elsewhere is forgotten.

    Raises:
        ValueError: the name is another module's that is in use, and must not be taken away.
    """
    spec, known = PathFinder.find_spec(top), getattr(sys.modules.get(top), "__spec__", None)
    if spec is None or known is None or _home(known) == _home(spec):
        return
    if _home(known) in _served:
        _drop(top)
    elif _home(spec) in places:
        raise _taken(top, _home(spec), sys.modules[top])


def _taken(top: str, place: str | None, known: Any) -> ValueError:
    used = getattr(known, "__file__", None) or "a module of Python's own"
    return ValueError(
        f"the module name {top!r} in {place} is taken by {used}, which is in use already: give your file another name"
    )


def _not_there(missing: str, top: str, places: list[str]) -> ValueError:
    # A folder without __init__.py gives way to an installed package of its name.
    hidden = next((place for place in places if os.path.isdir(Path(place) / top)), None)
    known = sys.modules.get(top)
    if hidden is not None and known is not None and _home(getattr(known, "__spec__", None)) != hidden:
        return _taken(top, hidden, known)
    return ValueError(
        f"there is no module {missing!r} in {' or '.join(places)}, nor among the installed packages; put {top}.py into one of "
        "these folders, or install it"
    )


def _raised(error: BaseException, name: str) -> ValueError:
    """The error of a module that cannot be imported, with the line that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else name
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
    return ValueError(f"{place} raised {type(error).__name__}: {error} while {name!r} was imported; mend it")


def _home(spec: ModuleSpec | None) -> str | None:
    """The folder in which a module's file, or a package's folder, lies."""
    if spec is None:
        return None
    if spec.submodule_search_locations is not None:
        places = list(spec.submodule_search_locations)
        return str(Path(places[0]).parent) if places else None
    return None if spec.origin is None or not spec.has_location else str(Path(spec.origin).parent)
