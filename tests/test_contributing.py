"""CONTRIBUTING.md names files, tables and commands that are there."""

from __future__ import annotations

import re
import tomllib

import pytest

from unigrpo.algorithm.noising import NOISING
from unigrpo.config.presets import METHODS
from unigrpo.models import POLICIES
from unigrpo.rewards import REWARDS
from unigrpo.samplers import SAMPLERS
from unigrpo.testing import check_policy, check_reward, check_sampler

from .support import ROOT


pytestmark = pytest.mark.smoke
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
TABLES = {"NOISING": NOISING, "METHODS": METHODS, "POLICIES": POLICIES, "REWARDS": REWARDS, "SAMPLERS": SAMPLERS}


def test_every_path_is_there():
    named = set(re.findall(r"`([\w./]+(?:\.py|\.md|\.toml|/))`", TEXT))
    inside = {path for path in named if (ROOT / "unigrpo" / path).exists()}
    missing = {path for path in named - inside if not (ROOT / path).exists()}
    assert len(named) >= 20 and not missing


def test_every_table_and_check_is_there():
    assert set(re.findall(r"line in `([A-Z]+)`", TEXT)) == set(TABLES) and all(TABLES.values())
    kit = {check.__name__ for check in (check_policy, check_reward, check_sampler)}
    assert set(re.findall(r"`unigrpo\.testing\.(\w+)`", TEXT)) == kit


def test_every_command_is_one():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    marks = {mark.partition(":")[0] for mark in settings["tool"]["pytest"]["ini_options"]["markers"]}
    assert set(re.findall(r"pytest[^\n#]* -m (\w+)", TEXT)) <= marks
    extras = set(settings["project"]["optional-dependencies"])
    assert set(re.findall(r"\[([\w,]+)\]\"", TEXT)[0].split(",")) <= extras
    tools = {item.partition(">")[0] for item in settings["project"]["optional-dependencies"]["dev"]}
    assert {"ruff", "codespell", "mypy", "import-linter", "pre-commit"} <= tools
