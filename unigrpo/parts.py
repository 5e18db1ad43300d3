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
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any

from .errors import check_choice, import_named


_MARK = "unigrpo.key"


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
        if isinstance(value, int | float) and not isinstance(value, bool) and not self._holds(value):
            raise ValueError(f"{where}{self.name}={value} must {self.range}")
        return value

    def _holds(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    @property
    def range(self) -> str:
        """The range as the end of a sentence: "must ..."."""
        low = self.at_least if self.above is None else self.above
        high = self.at_most if self.below is None else self.below
        if low is None and high is None:
            return "be finite"
        if high is None:
            if low == 0:
                return "be positive" if self.above is not None else "not be negative"
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
        hints = typing.get_type_hints(part)
        found = [own for own in inspect.signature(part).parameters.values() if own.kind is own.KEYWORD_ONLY]
        return {own.name: Key(name=own.name, hint=hints.get(own.name, Any), default=own.default) for own in found}
    hints, keys = typing.get_type_hints(part), {}
    for item in dataclasses.fields(part):
        about = item.metadata.get(_MARK, Key())
        if item.init and about is not None:
            default = item.default if item.default_factory is MISSING else item.default_factory()
            keys[item.name] = dataclasses.replace(about, name=item.name, hint=hints[item.name], default=default)
    return keys


def check_keys(part: Any) -> None:
    """Raises ``ValueError`` for a field of the dataclass object ``part`` that is out of range: its ``__post_init__``."""
    for name, about in keys_of(type(part)).items():
        about.read(getattr(part, name))


# ---- parts by name ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A part that was chosen: ``name`` in its table or ``pkg.mod:attr``, what stands behind it, and its ``own`` keys."""

    kind: str
    name: str
    part: Any
    own: dict[str, Any]

    def build(self, settings: Any, where: str = "", **fixed: Any) -> Callable:
        """The part with its own keys, those of ``settings`` by the same name, and ``fixed`` where it has such fields.

        Raises:
            ValueError: a value out of range; ``where`` prefixes its name.
        """
        keys = keys_of(self.part)
        values = {name: getattr(settings, name) for name in keys if hasattr(settings, name)}
        values = {**values, **{name: value for name, value in fixed.items() if _takes(self.part, name)}, **self.own}
        values = {name: value for name, value in values.items() if name not in keys or value != keys[name].default}
        try:
            if not isinstance(self.part, type):
                return functools.partial(self.part, **values) if values else self.part
            return self.part(**values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}{error}") from error


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
            part = import_named(name)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{where}{kind}={name!r} cannot be imported: {error}") from error
        if not callable(part):
            raise ValueError(f"{where}{kind}={name!r} is a {type(part).__name__}; it must be a class or a function")
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


def plain(given: Any) -> Any:
    """How a part is written in a recipe: an object or a class becomes its path, with its keys.

    Raises:
        ValueError: a function without a name of its own, which no saved file could name again.
    """
    if given is None or isinstance(given, str | Mapping):
        return dict(given) if isinstance(given, Mapping) else given
    is_object = dataclasses.is_dataclass(given) and not isinstance(given, type)
    behind = type(given) if is_object else given
    path = f"{getattr(behind, '__module__', '')}:{getattr(behind, '__qualname__', '<lambda>')}"
    if "<" in path:
        raise ValueError(f"{given!r} has no name that a saved run could find again: define it at the top of a module")
    own = {}
    if is_object:
        values = {name: (getattr(given, name), about.default) for name, about in keys_of(behind).items()}
        own = {name: value for name, (value, default) in values.items() if value != default}
    return {"name": path, **own} if own else path


def _takes(part: Any, name: str) -> bool:
    names = [item.name for item in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else []
    return name in (names or inspect.signature(part).parameters)


def _unknown(problem: str, word: str, valid: Mapping[str, Any], more: str) -> None:
    near = difflib.get_close_matches(str(word), list(valid), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{problem}: {hint}choose one of {list(valid)}{more}")


# ---- types ----


@functools.cache
def _kinds(hint: Any) -> tuple[Any, ...]:
    """The classes of a type hint; ``Any`` = anything."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(kind for own in typing.get_args(hint) for kind in _kinds(own))
    if hint is None:
        return (type(None),)
    kind = typing.get_origin(hint) or hint
    return (kind,) if isinstance(kind, type) else (Any,)


def _number_of(value: Any, kinds: tuple[Any, ...]) -> Any:
    """YAML reads ``1e-4`` as text, and a whole number is a number."""
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        return float(value)
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
