"""A planted bug: where it is, what it breaks, who should find it."""

from __future__ import annotations

import ast
import importlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


LIST = Path(__file__).with_name("core.toml")


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One text of one file, replaced by another that computes something else.

    Attributes:
        name: what ``--only`` calls it.
        file: below the project's root.
        bug: what is wrong with the result, in a sentence.
        old, new: a text that stands in the file exactly once, and what takes its place.
        tests: below ``tests/``, those that should find it, the likeliest first; files, of long ones one test.
        harmless: why no test can find it; empty where one should.
    """

    name: str
    file: str
    bug: str
    old: str
    new: str
    tests: tuple[str, ...]
    harmless: str = ""

    @property
    def module(self) -> str:
        """``unigrpo.training.window``."""
        return self.file.removesuffix(".py").replace("/", ".")

    @property
    def room(self) -> str:
        """The folder of tests that should find it."""
        return self.tests[0].partition("/")[0]

    def planted(self, root: Path) -> str:
        """The text of the file with the bug in it.

        Raises:
            ValueError: the old text does not stand there once, or the new one is no code or the same code.
        """
        text = (root / self.file).read_text()
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"{self.name}: old stands {count} times in {self.file}, not once; take it from the file again"
            )
        changed = text.replace(self.old, self.new)
        try:
            same = ast.dump(ast.parse(text)) == ast.dump(ast.parse(changed))
        except SyntaxError as error:
            raise ValueError(f"{self.name}: {self.file} is no Python with new in it: {error}") from error
        if same:
            raise ValueError(f"{self.name}: {self.file} computes the same with new in it")
        return changed

    def check(self, root: Path) -> None:
        """Raises ``ValueError`` where tests would fail for another reason than the bug: a module that cannot be imported.

        The planted text is run beside the module that it replaces, and must define the same names.
        """
        before, after = (root / self.file).read_text(), self.planted(root)
        try:
            lost = set(self._names(before)) - set(self._names(after))
        except Exception as error:
            raise ValueError(f"{self.name}: {self.file} cannot be imported with new in it: {error!r}") from error
        if lost:
            raise ValueError(f"{self.name}: {self.file} has no {', '.join(sorted(lost))} with new in it")

    def _names(self, text: str) -> dict[str, Any]:
        """What ``text`` defines as the module."""
        own = importlib.import_module(self.module)
        twin = ModuleType(self.module)
        twin.__dict__.update(__file__=own.__file__, __package__=own.__package__)
        exec(compile(text, self.file, "exec"), twin.__dict__)
        return vars(twin)


def read(path: Path = LIST) -> list[Mutant]:
    """The mutants of a list; raises ``ValueError`` for two of one name."""
    found = [Mutant(**{**own, "tests": tuple(own["tests"])}) for own in tomllib.loads(path.read_text())["mutant"]]
    names = [own.name for own in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path.name} has several mutants called {', '.join(sorted(twice))}")
    return found
