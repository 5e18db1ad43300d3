"""Every Python block of every README can be read, and imports and calls what is there; one that is whole and loads nothing runs."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import importlib
import inspect
from typing import Any

import pytest

import unigrpo

from .support.readme_commands import Fence, fences, pages


LOADS = {"load_policy", "load_model", "from_pretrained", "load_dataset", "UniGRPOTrainer", "Trainer", "generate"}
"""What a block calls that loads a model or data, or trains; `test_examples.py` runs those of the main README."""

BLOCKS = {
    f"{page}:{own.line}": (page, own) for page, text in pages().items() for own in fences(text) if own.language in ("python", "py")
}  # fmt: skip


def imported(page: str, tree: ast.AST) -> dict[str, Any]:
    """What a block imports, by the name that it gives; a relative import is of the page's room."""
    room = page.removeprefix("unigrpo/").rpartition("/")[0].replace("/", ".")
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for own in node.names:
                whole, top = importlib.import_module(own.name), own.name.partition(".")[0]
                names |= {own.asname: whole} if own.asname else {top: importlib.import_module(top)}
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module("." * node.level + (node.module or ""), f"unigrpo.{room}".rstrip("."))
            names |= {own.asname or own.name: getattr(module, own.name) for own in node.names}
    return names


def called(node: ast.expr, names: dict[str, Any]) -> Any:
    """What a call calls, where its name says so; else None. An attribute of a module must be there."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = called(node.value, names)
        return getattr(owner, node.attr) if inspect.ismodule(owner) else None
    return None


def unknown_keywords(tree: ast.AST, names: dict[str, Any]) -> list[str]:
    """Keyword arguments that a function or class of the library does not take."""
    wrong = []
    for node in ast.walk(tree):
        target = called(node.func, names) if isinstance(node, ast.Call) else None
        if target is None or not getattr(target, "__module__", "").startswith("unigrpo"):
            continue
        parameters = inspect.signature(target).parameters.values()
        # A configuration refuses unknown keys itself, with the nearest one.
        fields = {own.name for own in dataclasses.fields(target)} if dataclasses.is_dataclass(target) else set()
        if fields or not any(own.kind is inspect.Parameter.VAR_KEYWORD for own in parameters):
            takes = fields | {own.name for own in parameters}
            wrong += [f"{target.__name__}({own.arg}=)" for own in node.keywords if own.arg and own.arg not in takes]
    return wrong


def names_of(page: str) -> dict[str, Any]:
    """What all blocks of a page import, and the public names of the library."""
    public = {name: getattr(unigrpo, name) for name in unigrpo.__all__}
    for own, block in BLOCKS.values():
        if own == page:
            public |= imported(page, ast.parse(block.text))
    return public


def is_whole(tree: ast.AST, names: dict[str, Any]) -> bool:
    """Whether a block defines or imports every name that it reads, and loads and trains nothing."""
    nodes = list(ast.walk(tree))
    made = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    made |= {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    made |= {node.arg for node in nodes if isinstance(node, ast.arg)} | set(
        imported("", tree) if not _relative(nodes) else names
    )
    read = {node.id for node in nodes if isinstance(node, ast.Name)} - made - set(dir(builtins))
    calls = {getattr(node.func, "id", getattr(node.func, "attr", "")) for node in nodes if isinstance(node, ast.Call)}
    return not read and not calls & LOADS


def _relative(nodes: list[ast.AST]) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.level for node in nodes)


@pytest.mark.parametrize(("page", "block"), BLOCKS.values(), ids=BLOCKS)
def test_a_block_is_python_that_calls_what_is_there(page: str, block: Fence):
    code = compile(block.text, page, "exec", dont_inherit=True)
    tree, names = ast.parse(block.text), names_of(page)
    assert not unknown_keywords(tree, names)
    if is_whole(tree, names) and not _relative(list(ast.walk(tree))):
        exec(code, {"__name__": __name__})


@pytest.mark.parametrize(
    "text",
    [
        "from unigrpo import Nothing",
        "import unigrpo.nothing",
        "unigrpo.nothing()",
        "UniGRPOConfig('a', stepz=1)",
        "from .text import nothing",
    ],
)
def test_a_block_that_cannot_work_is_found(text):
    tree = ast.parse(text)
    with pytest.raises((ImportError, AttributeError, AssertionError)):
        names = {**names_of("README.md"), "unigrpo": unigrpo, **imported("rewards/README.md", tree)}
        assert not unknown_keywords(tree, names)


def test_blocks_are_found_and_some_run():
    whole = [place for place, (page, block) in BLOCKS.items() if is_whole(ast.parse(block.text), names_of(page))]
    assert len(BLOCKS) >= 12 and len(whole) >= 4
