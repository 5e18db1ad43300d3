"""The table of laws in tests/README.md names tests that are there; the smoke tests are one law a module."""

from __future__ import annotations

import ast
import re

import pytest

from .support import ROOT


TABLE = (ROOT / "tests" / "README.md").read_text().partition("<!-- laws -->")[2].partition("<!-- /laws -->")[0]
LAWS = re.findall(r"^\| (.+) \| `([\w/]+\.py)::(\w+)` \|$", TABLE, re.MULTILINE)


@pytest.mark.smoke
def test_every_law_has_its_test():
    assert len(LAWS) >= 30 and len(LAWS) == TABLE.count("::") == len({law for law, *_ in LAWS})
    for law, file, name in LAWS:
        functions = {
            own.name: own
            for own in ast.parse((ROOT / "tests" / file).read_text()).body
            if isinstance(own, ast.FunctionDef)
        }
        assert name in functions, f"{law}: {file} has no {name}"
        body = ast.unparse(functions[name])
        assert re.search(r"assert|raises|check_|agree", body), f"{law}: {file}::{name} asserts nothing"


def test_smoke_is_one_law_a_module():
    files = (ROOT / "tests").rglob("test_*.py")
    marked = [len(re.findall(r"^[^'\"#\n]*mark\.smoke", path.read_text(), re.MULTILINE)) for path in files]
    assert sum(marked) > 80 and max(marked) == 1
