"""The table of laws in tests/README.md names tests that are there."""

from __future__ import annotations

import ast
import re

import pytest

from .support import ROOT


pytestmark = pytest.mark.smoke
TABLE = (ROOT / "tests" / "README.md").read_text().partition("<!-- laws -->")[2].partition("<!-- /laws -->")[0]
LAWS = re.findall(r"^\| (.+) \| `([\w/]+\.py)::(\w+)` \|$", TABLE, re.MULTILINE)


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
