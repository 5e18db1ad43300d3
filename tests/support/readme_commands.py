"""The commands that the project's texts tell a reader to type: where each stands, and its words."""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from unigrpo.runs.cli import build_parser

from . import ROOT
from .command_checks import PROGRAMS


SHELLS = ("bash", "sh", "shell", "console")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """``words`` as they are given to a program; what may be left out is there (``[...]``), and alternatives are commands of their own.

    ``text`` is the line as it is written, ``place`` its page and line, ``shown`` False for a span in a sentence, which may be cut short.
    """

    place: str
    text: str
    words: tuple[str, ...]
    shown: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """A block between fences: its language, its text, and the line of its first one."""

    language: str
    text: str
    line: int


FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.S | re.M)
SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S)


@cache
def pages() -> dict[str, str]:
    """The text of every page of the repository but the list of changes, and the examples of every ``--help``."""
    rooms = ("unigrpo", "recipes", "rewards", "examples", "tests")
    below = [file for folder in rooms for file in (ROOT / folder).rglob("*.md")]
    files = {file.resolve() for file in [*ROOT.glob("*.md"), *below]} - {ROOT.resolve() / "CHANGELOG.md"}
    texts = {str(file.relative_to(ROOT.resolve())): file.read_text() for file in sorted(files)}
    return texts | {f"{name} --help": f"```bash\n{examples}```" for name, examples in help_examples().items()}


def help_examples() -> dict[str, str]:
    """The examples below each command's ``--help``; what is said of one becomes a comment."""
    parser = build_parser()
    (subcommands,) = [own.choices for own in parser._actions if isinstance(own, argparse._SubParsersAction)]
    commands = {"unigrpo": parser, **{f"unigrpo {name}": own for name, own in subcommands.items()}}
    found = {
        name: re.findall(r"^  ((?:unigrpo|accelerate) (?:.*\\\n)*.*\n)", f"{own.epilog}\n", re.M)
        for name, own in commands.items()
    }
    return {name: re.sub(r"(?<=\S)   +(?=\S)", "   # ", "".join(lines)) for name, lines in found.items()}


def fences(text: str) -> Iterator[Fence]:
    """The blocks of a page, without the indent that a list gives them."""
    for found in FENCE.finditer(text):
        body = re.sub(rf"^{found[1]}", "", found[3], flags=re.M)
        yield Fence(language=found[2], text=body, line=text.count("\n", 0, found.start()) + 2)


@cache
def units() -> tuple[tuple[Command, ...], ...]:
    """The commands of each block, one after another in one folder, and each span alone."""
    found = [unit for page, text in pages().items() for unit in (*_blocks(page, text), *_spans(page, text))]
    return tuple(unit for unit in found if unit)


def _blocks(page: str, text: str) -> Iterator[tuple[Command, ...]]:
    for own in fences(text):
        commands: list[Command] = []
        line = own.line
        for logical in re.findall(r"(?:.*\\\n)*.*\n", own.text):
            written = re.sub(r"\\\n\s*", "", logical).strip().removeprefix("$ ")
            if written and not written.startswith("#") and (own.language in SHELLS or _is_command(written)):
                commands += _commands(written, f"{page}:{line}", shown=True)
            line += logical.count("\n")
        yield tuple(commands)


def _spans(page: str, text: str) -> Iterator[tuple[Command, ...]]:
    prose = FENCE.sub(lambda own: "\n" * own[0].count("\n"), text)
    for found in SPAN.finditer(prose):
        written = " ".join(found[2].split()).replace("\\|", "|")
        if _is_command(written):
            yield tuple(_commands(written, f"{page}:{prose.count(chr(10), 0, found.start()) + 1}", shown=False))


def _is_command(text: str) -> bool:
    words = [word for word in text.split() if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    return bool(words) and words[0] in PROGRAMS and (len(words) > 1 or words[0].startswith(".ci"))


def _commands(written: str, place: str, *, shown: bool) -> Iterator[Command]:
    """The commands of a line, ``[what may be left out]`` once left out and once there, ``one|other`` each."""
    optional = r"(?<!\S)\[([^\[\]]*)\](?!\S)"
    with_all = written
    while re.search(optional, with_all):
        with_all = re.sub(optional, r"\1", with_all)
    without = re.sub(optional, "", written)
    for line in dict.fromkeys([without, with_all]):
        choices = [word.split("|") if re.fullmatch(r"[\w-]+(\|[\w-]+)+", word) else [word] for word in line.split(" ")]
        for one in itertools.product(*choices):
            for words in _simple(" ".join(one)):
                yield Command(place=place, text=written, words=tuple(words), shown=shown)


def _simple(line: str) -> Iterator[list[str]]:
    """The words of each command of a shell's line, without comments, variables that are set for it, and redirections."""
    lexer = shlex.shlex(re.sub(r"\s\d?>>?\s*&?\S+", "", line), posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    words: list[str] = []
    for token in [*lexer, ";"]:
        if set(token) <= set("&|;"):
            if words:
                yield words
            words = []
        elif words or not re.fullmatch(r"[A-Z_]+=\S*", token):
            words.append(token)
