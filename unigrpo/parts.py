"""Parts of an algorithm and their keys.

A part is a frozen dataclass or a function: a noising, a sampler, a surrogate, an advantage estimator. What a user may set is a
field of the part that reads it (of a function, a keyword-only parameter). Its default, its range and its sentence stand there
and nowhere else: configuration, checks, warnings and ``unigrpo keys`` are derived from them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import json
import numbers
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from .errors import check_choice, import_named


_MARK = "unigrpo.key"
MOST_STEPS, MOST_REPEATS = 2**16, 10_000  # Beyond them a run would not end, and no canvas has so many positions.


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One thing to set.

    Attributes:
        name, hint, default: of the field.
        help: a sentence for a user.
        choices: the words it may be, () = any.
        at_least, at_most: the closed ends of its range; above, below: open ends.
        read_if: when the part reads it at all, in words and as a test of a task's settings; None = always.
    """

    name: str = ""
    hint: Any = Any
    default: Any = None
    help: str = ""
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    read_if: tuple[str, Callable[[Any], bool]] | None = None

    def read(self, value: Any, where: str = "") -> Any:
        """``value`` in the key's type, a number that was written as text read as one.

        Raises:
            ValueError: another type, an unknown word, or out of range; ``where`` prefixes the key's name.
        """
        kinds = _kinds(self.hint)
        if value is None and type(None) in kinds:
            return None
        value = _number_of(value, kinds)
        if self.choices:
            check_choice(f"{where}{self.name}", value, self.choices)
        if not _is_one_of(value, kinds):
            raise ValueError(f"{where}{self.name}={value!r} must be {_words(kinds)}")
        for item in value if isinstance(value, list) else ():
            own = _is_one_of(item, self._items)
            if not own or (isinstance(item, int | float) and not is_finite(item)):
                must = "finite" if own else _words(self._items)
                raise ValueError(f"{where}{self.name}={value!r}: each of the list must be {must}")
        if isinstance(value, int | float) and not isinstance(value, bool) and not self._holds(value):
            raise ValueError(f"{where}{self.name}={value} must {self.range if is_finite(value) else 'be finite'}")
        return value

    @property
    def _items(self) -> tuple[Any, ...]:
        """The classes of a list's items."""
        options = typing.get_args(self.hint) if _is_union(self.hint) else (self.hint,)
        inner = [typing.get_args(own) for own in options if typing.get_origin(own) is list]
        return _kinds(inner[0][0]) if inner and inner[0] else (Any,)

    def _holds(self, value: float) -> bool:
        above = (self.at_least is None or value >= self.at_least) and (self.above is None or value > self.above)
        below = (self.at_most is None or value <= self.at_most) and (self.below is None or value < self.below)
        return is_finite(value) and above and below

    @property
    def range(self) -> str:
        """The range as the end of a sentence: "must ..."."""
        low = self.at_least if self.above is None else self.above
        high = self.at_most if self.below is None else self.below
        if low is None and high is None:
            return "be finite"
        if high is None and low == 0:
            return "be positive" if self.above is not None else "not be negative"
        if high is None:
            return f"be {'greater than' if self.above is not None else 'at least'} {low}"
        start = "(-inf" if low is None else f"{'[' if self.above is None else '('}{low}"
        return f"lie in {start}, {high}{']' if self.below is None else ')'}"


def key(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field that users may set; ``limits`` are the other fields of ``Key``."""
    return field(default=default, metadata={_MARK: Key(help=" ".join(help.split()), **limits)})


def internal(default: Any) -> Any:
    """A dataclass field that the library sets, and no user."""
    return field(default=default, metadata={_MARK: None})


def keys_of(part: Any) -> Mapping[str, Key]:
    """The keys of a dataclass or a function, by name, in order. A field without ``key`` has no range and no sentence."""
    return _keys_of(part)


@functools.cache
def _keys_of(part: Any) -> Mapping[str, Key]:
    if not dataclasses.is_dataclass(part):
        if not callable(part):
            return {}
        hints = _hints(part)
        found = [own for own in inspect.signature(part).parameters.values() if own.kind is own.KEYWORD_ONLY]
        return {own.name: Key(name=own.name, hint=hints.get(own.name, Any), default=own.default) for own in found}
    hints, keys = _hints(part), {}
    for item in dataclasses.fields(part):
        about = item.metadata.get(_MARK, Key())
        if item.init and about is not None:
            default = item.default if item.default_factory is MISSING else item.default_factory()
            keys[item.name] = dataclasses.replace(
                about, name=item.name, hint=hints.get(item.name, Any), default=default
            )
    return keys


def _hints(part: Any) -> dict[str, Any]:
    """Type hints; none where a name is known to a type checker alone."""
    try:
        return typing.get_type_hints(part)
    except NameError:
        return {}


def check_keys(part: Any) -> None:
    """Raises ``ValueError`` for a field of the dataclass object ``part`` that is out of range: its ``__post_init__``."""
    for name, about in keys_of(type(part)).items():
        about.read(getattr(part, name))


# ---- parts by name ----

NOTHING = (MISSING, inspect.Parameter.empty)
"""The default of a key that has none."""

_found: dict[str, Any] = {}
"""Parts by path, as they were found last. A module of a recipe's folder may give way to another one of its name."""


def import_part(path: str, folders: Sequence[str | Path] = ()) -> Any:
    """The part behind ``pkg.mod:attr``; one that is known is not imported again unless ``folders`` say where to look.

    Raises:
        ValueError: a path that leads nowhere, or to what is no class and no function.
    """
    if path not in _found or folders:
        found = import_named(path, folders)
        if not (isinstance(found, type) or (callable(found) and hasattr(found, "__qualname__"))):
            raise ValueError(f"it is an object of class {type(found).__name__}; a part is a class or a function")
        _found[path] = found
    return _found[path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A part that was chosen: ``name`` in its table or ``pkg.mod:attr``, what stands behind it, and its ``own`` keys."""

    kind: str
    name: str
    part: Any
    own: dict[str, Any]

    def build(self, values: Mapping[str, Any], where: str = "", **fixed: Any) -> Callable:
        """The part with its own keys, those of ``values`` that it has, and ``fixed`` where it has such fields.

        Raises:
            ValueError: a value out of range, or one that is missing; ``where`` prefixes its name.
        """
        keys = keys_of(self.part)
        taken = {name: value for name, value in values.items() if name in keys}
        taken |= {name: value for name, value in fixed.items() if _takes(self.part, name)} | self.own
        missing = [name for name, about in keys.items() if about.default in NOTHING and name not in taken]
        if missing:
            raise ValueError(
                f"{where}{self.kind}={self.name!r} needs {missing[0]!r}: give it a default, or write {self.kind}: "
                f"{{name: {self.name!r}, {missing[0]}: ...}}"
            )
        try:
            return self.part(**taken) if isinstance(self.part, type) else functools.partial(self.part, **taken)
        except ValueError as error:
            raise ValueError(f"{where}{error}") from error
        except TypeError as error:
            raise ValueError(f"{where}{self.kind}={self.name!r}: {error}") from error


def choose(kind: str, given: Any, table: Mapping[str, Any], where: str = "") -> Choice:
    """The part that ``given`` names: a name in ``table``, ``pkg.mod:attr``, or a mapping ``{name: ..., key: value}``.

    Raises:
        ValueError: an unknown name or key, a path that leads nowhere, or a value out of range.
    """
    own = dict(given) if isinstance(given, Mapping) else {"name": given}
    name = own.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"{where}{kind}={given!r} must be a name, a 'pkg.mod:attr' path, or a mapping with a 'name'")
    if ":" in name:
        try:
            part = import_part(name)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{where}{kind}={name!r} cannot be imported: {error}") from error
    else:
        if name not in table:
            _unknown(f"{where}{kind}={name!r} is not valid", name, table, " or give 'pkg.mod:attr'")
        part = table[name]
    keys = keys_of(part)
    for word in own:
        if word not in keys:
            _unknown(f"{where}{kind}: {name!r} has no key {word!r}", word, keys, "")
    own = {word: keys[word].read(value, f"{where}{kind}.") for word, value in own.items()}
    return Choice(kind=kind, name=name, part=part, own=own)


def merged(*layers: Any) -> dict[str, Any]:
    """The first layer that names a part, as a mapping, with the keys of those before it that name none."""
    own: dict[str, Any] = {}
    for layer in layers:
        if layer is not None:
            own = {**(layer if isinstance(layer, Mapping) else {"name": layer}), **own}
            if "name" in own:
                break
    return own


def plain(key: str, given: Any) -> Any:
    """How a part is written in a recipe: JSON becomes a mapping, a class its path, an object its path with its keys.

    Raises:
        ValueError: JSON that is none, or what no saved file could name again; the message names ``key``.
    """
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ValueError(f"{key}={given!r} is not JSON: {error}") from error
    if given is None or isinstance(given, str | Mapping):
        return dict(given) if isinstance(given, Mapping) else given
    is_object = dataclasses.is_dataclass(given) and not isinstance(given, type)
    behind = type(given) if is_object else given
    path = f"{getattr(behind, '__module__', '')}:{getattr(behind, '__qualname__', '<nothing>')}"
    if "<" in path or not callable(behind):
        raise ValueError(
            f"{key}={given!r} must be a name, a 'pkg.mod:attr' path, a mapping with a 'name', or a class, function or frozen "
            "dataclass from the top of a module, which a saved run can find again"
        )
    _found[path] = behind
    own = {name: getattr(given, name) for name in keys_of(behind)} if is_object else {}
    return {"name": path, **own} if own else path


def _takes(part: Any, name: str) -> bool:
    names = [item.name for item in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else []
    return name in (names or inspect.signature(part).parameters)


def _unknown(problem: str, word: str, valid: Mapping[str, Any], more: str) -> None:
    near = difflib.get_close_matches(str(word), list(valid), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{problem}: {hint}choose one of {list(valid)}{more}")


# ---- types ----


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


@functools.cache
def _kinds(hint: Any) -> tuple[Any, ...]:
    """The classes of a type hint; ``Any`` = anything."""
    if _is_union(hint):
        return tuple(kind for own in typing.get_args(hint) for kind in _kinds(own))
    if hint is None:
        return (type(None),)
    kind = typing.get_origin(hint) or hint
    return (kind,) if isinstance(kind, type) else (Any,)


def is_finite(value: Any) -> bool:
    """Whether it is a number in the range of a float, which whole numbers leave too."""
    return abs(value) <= sys.float_info.max


def _number_of(value: Any, kinds: tuple[Any, ...]) -> Any:
    """YAML reads ``1e-4`` as text, a whole number is a number, and a number of numpy's one of Python's."""
    if isinstance(value, tuple) and list in kinds:
        return list(value)
    if isinstance(value, numbers.Number) and not isinstance(value, bool | int | float) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        return float(value) if is_finite(value) else value
    if not isinstance(value, str) or str in kinds or Any in kinds:
        return value
    for kind in (kind for kind in (int, float) if kind in kinds):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _is_one_of(value: Any, kinds: tuple[Any, ...]) -> bool:
    if Any in kinds:
        return True
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int) and float in kinds:
        return True
    return isinstance(value, tuple(kind for kind in kinds if kind is not bool))


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def _words(kinds: tuple[Any, ...]) -> str:
    named = [kind for kind in kinds if kind is not type(None) and not (kind is int and float in kinds)]
    words = " or ".join(dict.fromkeys(_WORDS.get(kind, kind.__name__) for kind in named))
    return f"{words}, or none" if type(None) in kinds else words
