"""TROUBLESHOOTING.md quotes what the program says, and names keys, extras and places that are there.

Its commands are held with those of all pages (``test_readme_commands``)."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator

import pytest

from unigrpo.runs.sft import load_any_recipe

from .support import ROOT


TEXT = (ROOT / "TROUBLESHOOTING.md").read_text()
SOURCES = [path.read_text() for room in ("unigrpo", "rewards") for path in sorted((ROOT / room).rglob("*.py"))]
QUOTES = re.findall(r"^> (.+)$", TEXT, re.MULTILINE)
OF_OTHERS = {"task", "opened", "args"}
"""Keys that are named so, of rows and of rewards."""
HEADINGS = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)


def said(source: str) -> Iterator[str]:
    """What a file can say: its texts but for docstrings, NUL where a value is filled in."""
    nodes = list(ast.walk(ast.parse(source)))
    skipped = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    skipped |= {id(own) for node in nodes if isinstance(node, ast.JoinedStr) for own in node.values}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value
        if isinstance(node, ast.JoinedStr):
            yield "".join(own.value if isinstance(own, ast.Constant) else "\0" for own in node.values)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.smoke
def test_every_quote_is_a_sentence_of_the_program():
    """``…`` stands for any text; a quote that does not begin (end) with it begins (ends) what the program says."""
    sentences = [own for source in SOURCES for own in said(source)]

    def is_said(quote: str) -> bool:
        pattern = re.compile(".*".join(map(re.escape, quote.split("…"))), re.DOTALL)
        return any(pattern.fullmatch(own) for own in sentences)

    assert len(QUOTES) >= 60 and min(len(re.findall(r"\w", own)) for own in QUOTES) >= 9
    assert [own for own in QUOTES if not is_said(own)] == []


def test_every_key_is_one():
    spans = [own for own in re.findall(r"`([^`\n]+)`", TEXT) if not own.startswith(("unigrpo", "-"))]
    keys = [own for span in spans for own in re.findall(r"\b([a-z][a-z_0-9.]*)(?:=|: )([\w./-]+)", span)]
    assert len(keys) >= 40
    for name, value in keys:
        if name not in OF_OTHERS:
            load_any_recipe("quickstart_sft" if name == "objective" else "quickstart", [f"{name}={value}"])


def test_every_name_is_written_as_in_the_code():
    names = set(re.findall(r"`([a-z]+_[a-z_0-9]+(?:/[a-z_]+)?)`", TEXT))
    known = set(re.findall(r"\w+", "\n".join(SOURCES)))
    places = {path.stem for path in ROOT.rglob("recipes/*.yaml")} | {"open_clip_torch"}
    assert len(names) >= 40
    assert [own for own in names if not set(own.split("/")) <= known | places] == []


def test_every_link_and_every_place_is_there():
    for name, target in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in map(anchor, HEADINGS), name
        elif target.startswith("https:"):
            assert re.fullmatch(r"https://github\.com/[\w-]+/[\w-]+/(issues|pull)/\d+", target), name
        else:
            assert (ROOT / target).exists(), name
    places = re.findall(r"`([\w./]+/README\.md)`(?:,\s\"([^\"]+)\")?", TEXT)
    assert len(places) >= 8
    for place, title in places:
        assert re.search(rf"^#+ {title}", (ROOT / place).read_text(), re.MULTILINE), (place, title)


def test_the_contents_are_the_sections():
    listed = re.findall(r"^\d+\. \[(.+)\]", TEXT, re.MULTILINE)
    assert listed == re.findall(r"^## (.+)$", TEXT, re.MULTILINE) and len(set(HEADINGS)) == len(HEADINGS)


def test_versions_and_extras_are_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    supported = {own.rpartition(" ")[2] for own in project["classifiers"] if re.search(r":: 3\.\d+$", own)}
    table = TEXT.partition("## What works where")[2].partition("\n## ")[0]
    assert set(re.findall(r"3\.1\d", table)) == supported | {"3.10"} and project["requires-python"] == ">=3.11"
    extras = {own for group in re.findall(r"unigrpo\[([\w,-]+)\]", TEXT) for own in group.split(",")}
    assert extras >= {"plots", "quantization", "deepspeed"} and extras <= set(project["optional-dependencies"])
