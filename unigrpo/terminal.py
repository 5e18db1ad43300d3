"""What is printed. Text of a model, a dataset or a path is data: its control characters and its markup are shown, not obeyed.

Everything that this package prints goes through ``say`` or a ``console``; a test looks for other ways.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.text import Text


HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of what is not seen: controls (C0, C1), formats (bidi overrides, tags), surrogates, line separators."""

KEPT = "\n\t\u200c\u200d"
"""Of these the line break, the tab and the joiners of scripts and emoji stay."""

SECRET_NAME = re.compile(
    r"(?i)(^|_|-|\b)(api_?key|key|key_id|token|secret|password|passwd|credentials?|auth|authorization)$"
)
"""How the name of a variable or an argument ends that holds a secret."""

SECRET_SHAPE = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{16,})|(?<=Bearer )[^\s'\"]+")
"""Keys that are known by their form: of the hub, of OpenAI and those who copied it, of GitHub, of a request's header."""

LEAST_SECRET = 8
"""Characters of a variable's value that is looked for in texts; shorter ones may be anything."""


def visible(text: str) -> str:
    """``text`` with what would be obeyed or not be seen written as Python escapes, such as ``\\x1b``; no secrets.

    Line breaks and tabs stay.
    """
    text = without_secrets(str(text).replace("\r\n", "\n"))
    if text.isprintable():
        return text
    return "".join(_escaped(char) if unicodedata.category(char) in HIDDEN else char for char in text)


def _escaped(char: str) -> str:
    return char if char in KEPT else char.encode("unicode_escape").decode()


def is_secret(name: Any) -> bool:
    """Whether something of that name is not to be shown."""
    return isinstance(name, str) and SECRET_NAME.search(name) is not None


def without_secrets(text: str) -> str:
    """``text`` with ``***`` for the secrets of the environment (by the variables' names) and for what looks like a key."""
    values = {value.strip() for name, value in os.environ.items() if is_secret(name)}
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= LEAST_SECRET:
            text = text.replace(value, "***")
    return SECRET_SHAPE.sub("***", text)


def masked(values: Any) -> Any:
    """Arguments to be shown: what is named like a secret, at any depth, is ``***``."""
    if isinstance(values, Mapping):
        return {name: "***" if is_secret(name) and own else masked(own) for name, own in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(map(masked, values)) if type(values) in (list, tuple) else values
    return without_secrets(values) if isinstance(values, str) else values


def middle_out(text: str, most: int = 400) -> str:
    """A text of at most about ``most`` characters: of a longer one a part of its beginning, and its end, where answers are."""
    return text if len(text) <= most else f"{text[: most // 4]} … {text[-(most - most // 4) :]}"


def say(text: str = "", *, error: bool = False) -> None:
    """Prints ``text`` and a line break, to standard error where it is told to."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(visible(text), file=stream, flush=True)
    except BrokenPipeError:
        unread(stream)


def unread(stream: IO[str]) -> None:
    """Nobody reads ``stream`` any more (``| head``): the rest of it goes nowhere, and what runs goes on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def say_at_once(text: str) -> None:
    """As ``say`` to standard error, from a signal handler: past the buffers, in which it may have come."""
    with suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"\n{visible(text)}\n".encode())


class PlainConsole(Console):
    """A console of rich that takes every string as data: cells and titles of tables, and what is printed."""

    def on_broken_pipe(self) -> None:
        unread(self.file)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})


def console(error: bool = False, **options: Any) -> PlainConsole:
    """Where tables and progress go: standard output, or standard error."""
    return PlainConsole(stderr=error, **options)


def tracked(rows: Sequence[Any], what: str, *, error: bool = False) -> Iterable[Any]:
    """``rows``, with progress where there is a terminal; ``error`` as in ``console``."""
    return track(rows, escape(visible(what)), transient=True, console=console(error))


@contextmanager
def plain_messages() -> Iterator[None]:
    """Warnings inside the block are one line each, and they and an uncaught error are shown as ``say`` does."""

    def line(message: Any, kind: type[Warning], *_: Any, **__: Any) -> str:
        return visible(f"unigrpo: {kind.__name__}: {message}") + "\n"

    def trace(kind: type[BaseException], error: BaseException, place: Any) -> None:
        say("".join(traceback.format_exception(kind, error, place)).rstrip(), error=True)

    before = warnings.formatwarning
    warnings.formatwarning, sys.excepthook = line, trace
    try:
        yield
    finally:
        warnings.formatwarning = before
