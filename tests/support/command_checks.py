"""What each program would say of a command before it does anything: its own parser, and whether what is named is there."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import re
import runpy
import sys
import tomllib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from accelerate.commands.launch import launch_command_parser
from packaging.requirements import Requirement

from unigrpo.models.builtin import model_path
from unigrpo.runs import cli, packaged
from unigrpo.runs.app.policy import parsed as app_settings
from unigrpo.runs.build import build_config
from unigrpo.runs.dataset_spec import BUILTIN_LESSONS, BUILTIN_SETS
from unigrpo.runs.evaluate.tasks import TASKS
from unigrpo.runs.keys import describe
from unigrpo.runs.recipe import Recipe, load_recipe
from unigrpo.runs.reproduce.table import chosen
from unigrpo.runs.sft import config_to_check, load_any_recipe, load_sft_recipe
from unigrpo.toy.benchmark.tasks import chosen_algorithms, chosen_seeds, chosen_tasks

from . import ROOT


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
MARKS = {mark.partition(":")[0] for mark in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
OWN = r"[A-Z][A-Z_]*|[a-z]|(?:my|mine)(?:[_.:/][\w.:/]*)?"
"""What a reader replaces, or has made."""

NUMBERS = {"N": "1", "GB": "24"}
REST = ("...", "key=value", "KEY=VALUE", "TASK.KEY=VALUE")


def is_own(word: str) -> bool:
    """Whether a word, each part of a list, stands for something of the reader's."""
    return all(re.fullmatch(OWN, part) for part in word.split(","))


class Wrong(AssertionError):
    """A command that cannot work as it is written."""


def check(words: Sequence[str], *, shown: bool, before: Sequence[str] = ()) -> None:
    """Raises ``Wrong``, or what the library raises, for a command that names what is not there, or is refused by its own program.

    Args:
        shown: in a block. Otherwise it may be cut short, and name a command and some of its options.
        before: what is there by then: words of the commands that come first, files that the page shows.
    """
    program, *rest = words
    if program not in PROGRAMS:
        raise Wrong(f"{program!r} is no program that is known here: add what it is held to")
    for word in words:
        # What begins as a file of the repository is one.
        if re.match(r"(unigrpo|recipes|rewards|examples|tests|\.ci)/", word) and not (ROOT / word).exists():
            raise Wrong(f"there is no {word}")
        for name in re.findall(r"builtin:(\w+)", word):
            if name not in (*BUILTIN_SETS, *BUILTIN_LESSONS) and not is_own(name):
                model_path(f"builtin:{name}")
    if program.startswith("python") and rest[:1] and rest[0] in before:
        return
    written = [number for number, word in enumerate(rest) if word in before and word.endswith(".json")]
    rest = [word for number, word in enumerate(rest) if not {number, number + 1} & {*written}]
    PROGRAMS[program](rest, shown)


def parsed(parse: Callable[[list[str]], Any], words: Sequence[str], shown: bool = True) -> Any:
    """What a parser makes of ``words``; None where it shows its help. What only names a command gets what is missing."""
    words = [NUMBERS.get(word, word) for word in words if word not in REST]
    check_value, said = argparse.ArgumentParser._check_value, io.StringIO()

    def choice(self, action, value):
        return None if isinstance(value, str) and is_own(value) else check_value(self, action, value)

    for missing in ([], ["X"], ["X", "X"])[: 1 if shown else 3]:
        quiet = contextlib.redirect_stdout(io.StringIO())
        with (
            quiet,
            contextlib.redirect_stderr(said),
            mock.patch.object(argparse.ArgumentParser, "_check_value", choice),
        ):
            try:
                return parse([*words, *missing])
            except SystemExit as ended:
                if ended.code == 0:
                    return None
    raise Wrong(said.getvalue())


def unigrpo(words: list[str], shown: bool) -> None:
    """The subcommand's own parser, and what its words name."""
    if (not shown and not words) or (words and is_own(words[0])):
        return
    arguments = parsed(cli.parsed, words, shown)
    if arguments is not None and arguments.run in NAMED:
        NAMED[arguments.run](arguments)


def recipe_of(word: str, overrides: Sequence[str], load: Callable[..., Recipe] = load_recipe) -> Recipe:
    """The recipe that a command names, with what it says over it, its keys checked; a shipped one stands for the reader's, or a copy."""
    if is_own(Path(word).stem):
        word = "quickstart_sft" if load is load_sft_recipe else "quickstart"
    elif (ROOT / word).is_file():
        word = str(ROOT / word)
    elif Path(word).stem in packaged.names():
        word = Path(word).stem
    known = [one for one in overrides if not is_own(one.partition("=")[2]) and "my_" not in one]
    recipe = load(word, [*known, "use_cpu=true"])
    (build_config if recipe.kind == "train" else config_to_check)(recipe)
    return recipe


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.tasks is None:
        recipe_of(arguments.recipe, arguments.overrides)
        return
    names = [name for name in arguments.tasks.split(",") if ":" not in name and not is_own(name)]
    if unknown := sorted({*names} - TASKS.keys()):
        raise Wrong(f"--tasks {unknown}: there are {[*TASKS]}")
    recipe_of("quickstart", arguments.overrides)


def _benchmark(arguments: argparse.Namespace) -> None:
    tasks, algorithms = (None if is_own(own or "") else own for own in (arguments.tasks, arguments.algorithms))
    chosen_tasks(tasks, arguments.overrides)
    chosen_algorithms(algorithms)
    chosen_seeds(arguments.seeds)


def _reproduce(arguments: argparse.Namespace) -> None:
    if arguments.name is not None and not is_own(arguments.name):
        chosen(arguments.name, arguments.budget)


def _check(arguments: argparse.Namespace) -> None:
    overrides = [word for word in arguments.recipes if "=" in word]
    for word in arguments.recipes:
        if "=" not in word:
            recipe_of(word, overrides, load_any_recipe)


NAMED: dict[Callable, Callable[[argparse.Namespace], object]] = {
    cli.run_train: lambda own: recipe_of(own.recipe, own.overrides),
    cli.run_sft: lambda own: recipe_of(own.recipe, own.overrides, load_sft_recipe),
    cli.run_agreement: lambda own: recipe_of(own.recipe, own.overrides),
    cli.run_rewards: lambda own: own.recipe and recipe_of(own.recipe, own.overrides),
    cli.run_keys: lambda own: list(describe([word for word in own.words if not is_own(word)])),
    cli.run_recipes: lambda own: packaged.check_known([word for word in own.words[1:] if not is_own(word)]),
    cli.run_app: lambda own: app_settings([word for word in own.overrides if "=" in word]),
    cli.run_check: _check,
    cli.run_evaluate: _evaluate,
    cli.run_benchmark: _benchmark,
    cli.run_reproduce: _reproduce,
}
"""What a subcommand's words name, looked up as the subcommand does."""


class Read(Exception):
    """The command line has been read; nothing else is to happen."""


def python(words: list[str], shown: bool) -> None:
    """A module or a file that is there, and whose own parser takes the words; lines behind ``-c`` are Python."""
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
        return None
    as_module = words[0] == "-m"
    name, *rest = words[1:] if as_module else words
    if name == "unigrpo":
        return unigrpo(rest, shown)
    source = _source(name) if as_module else ROOT / name
    if source is None:
        raise Wrong(f"there is no module {name}")
    if name in sys.stdlib_module_names or not (rest or shown):
        return None
    if "ArgumentParser" not in source.read_text():
        compile(source.read_text(), str(source), "exec")
        if rest:
            raise Wrong(f"{name} reads no words")
        return None
    read, start = argparse.ArgumentParser.parse_args, runpy.run_module if as_module else runpy.run_path

    def reading(self, args=None, namespace=None):
        raise Read(read(self, args, namespace))

    def run(given: list[str]) -> None:
        argv = mock.patch.object(sys, "argv", [str(source), *given])
        patched = mock.patch.object(argparse.ArgumentParser, "parse_args", reading)
        with argv, patched, contextlib.suppress(Read), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # It may have been imported by another test.
            start(name if as_module else str(source), run_name="__main__")
            raise Wrong(f"{name} has not read its words")

    return parsed(run, rest)


def _source(module: str) -> Path | None:
    with contextlib.suppress(ImportError):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations:
            spec = importlib.util.find_spec(f"{module}.__main__")
        return None if spec is None or spec.origin is None else Path(spec.origin)
    return None


def pip(words: list[str], _: bool) -> None:
    """The project with extras that it has, or a package as an extra asks for it; what is taken away or listed is the reader's."""
    if words[0] in ("list", "show", "uninstall"):
        return
    asked = parsed(_options("-e -c -w", "--no-deps", "action wanted").parse_intermixed_args, words)
    if asked.action not in ("install", "wheel") or (asked.c and not (ROOT / asked.c).is_file()):
        raise Wrong(f"pip {asked.action}, {asked.c}")
    of_extras = [Requirement(own) for extra in EXTRAS.values() for own in extra]
    for word in [*filter(None, [asked.e]), *asked.wanted]:
        wanted = Requirement(re.sub(r"^\.(?=$|\[)", "unigrpo", word))
        versions = {"", *(str(own.specifier) for own in of_extras if own.name == wanted.name)}
        if wanted.name == "unigrpo" and wanted.extras - set(EXTRAS):
            raise Wrong(f"{word}: the extras are {sorted(EXTRAS)}")
        if wanted.name != "unigrpo" and (len(versions) == 1 or str(wanted.specifier) not in versions):
            raise Wrong(f"{word}: no extra asks for it so")


def _options(valued: str, flags: str, positional: str) -> argparse.ArgumentParser:
    """What our texts use of another program's options; the last positional takes the rest."""
    parser = argparse.ArgumentParser()
    for name in valued.split():
        parser.add_argument(name, default="")
    for name in flags.split():
        parser.add_argument(name, action="store_true")
    *single, rest = positional.split()
    for name in single:
        parser.add_argument(name)
    parser.add_argument(rest, nargs="*")
    return parser


def pytest(words: list[str], _: bool) -> None:
    """Marks, files and names that there are."""
    asked = parsed(_options("-n -m -k -p", "-q -x", "files").parse_intermixed_args, words)
    named = set(re.findall(r"\w+", asked.m)) - {"and", "or", "not"}
    if named - MARKS:
        raise Wrong(f"there is no mark {named - MARKS}")
    tests = "".join(
        " ".join(re.findall(r"def (test_\w+)", (ROOT / file.partition("::")[0]).read_text())) for file in asked.files
    )
    if asked.k not in tests:
        raise Wrong(f"no test of {asked.files} has {asked.k} in its name")


def accelerate(words: list[str], shown: bool) -> None:
    """accelerate's own parser, a launch file that ships, and the command behind it."""
    if words == ["launch"]:
        return
    asked = parsed(launch_command_parser().parse_args, words[1:])
    if asked.config_file is not None:
        packaged.check_known([f"accelerate/{Path(asked.config_file).stem}"])
    if not asked.module or asked.training_script != "unigrpo":
        raise Wrong(f"accelerate starts {asked.training_script!r}, not `-m unigrpo`")
    unigrpo(asked.training_script_args, shown)


def of_extra(package: str) -> Callable[[list[str], bool], None]:
    """A program that a package of an extra brings; its words are its own."""

    def brought(_: list[str], __: bool) -> None:
        if package not in {Requirement(own).name for extra in EXTRAS.values() for own in extra}:
            raise Wrong(f"no extra brings {package}")

    return brought


def of_the_system(_: list[str], __: bool) -> None:
    """A program whose words are its own."""


def script(words: list[str], _: bool) -> None:
    if words:
        raise Wrong(f"it reads no words, and gets {words}")


PROGRAMS: dict[str, Callable[[list[str], bool], None]] = {
    "unigrpo": unigrpo,
    "python": python,
    "python3": python,
    "pip": pip,
    "pytest": pytest,
    "accelerate": accelerate,
    ".ci/run": script,
    ".ci/slow": script,
    "lint-imports": of_extra("import-linter"),
    **{name: of_extra(name) for name in ("ruff", "codespell", "mypy", "pre-commit", "vllm")},
    **dict.fromkeys(
        ("apt-get", "cat", "cd", "cp", "curl", "export", "git", "ls", "mkdir", "nvidia-smi", "source", "sudo", "tail"),
        of_the_system,
    ),
}
"""What a command is held to, by its program. A block of commands has no others, and a span of code that begins so is one."""
