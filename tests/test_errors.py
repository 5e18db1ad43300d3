"""Names that users write: where their code is looked for, and what is said when it is not found."""

from __future__ import annotations

import ast
import builtins
import sys
from pathlib import Path

import pytest

from unigrpo import errors
from unigrpo.errors import import_named


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What a test imports and where Python looks is forgotten after it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(errors, "_served", [])
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        del sys.modules[name]


def module(folder, name: str, value: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(f"value = {value!r}\n")


def test_the_given_folder_comes_first_then_the_current_one_then_pythons_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("recipe", "installed"):
        module(tmp_path / folder, "mine", folder)
    module(tmp_path, "mine", "current")
    sys.path.insert(0, str(tmp_path / "installed"))
    assert import_named("mine:value", ["recipe"]) == "recipe"
    assert import_named("mine:value") == "current"
    (tmp_path / "mine.py").unlink()
    assert import_named("mine:value") == "installed"


def test_two_recipes_may_have_modules_of_one_name(tmp_path, monkeypatch):
    """Also packages, whose modules go with them; and a module that stays the same is not run again."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        package = tmp_path / name / "mine"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        module(package, "part", name)
    assert [import_named("mine.part:value", [name]) for name in "abba"] == ["a", "b", "b", "a"]
    assert import_named("mine.part:value.upper", ["a"])() == "A"
    first = sys.modules["mine.part"]
    import_named("mine.part:value", ["a"])
    assert sys.modules["mine.part"] is first


def test_a_recipe_without_the_module_does_not_get_another_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module(tmp_path / "a", "mine", "a")
    (tmp_path / "b").mkdir()
    assert import_named("mine:value", ["a"]) == "a"
    with pytest.raises(ValueError, match="no module 'mine' in "):
        import_named("mine:value", ["b"])


@pytest.mark.parametrize("package", [True, False], ids=["package", "plain folder"])
def test_helpers_and_plain_folders_are_those_of_the_recipe(tmp_path, monkeypatch, package):
    """A module beside the named one, and folders without ``__init__.py``, also where the other recipe has one."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        module(tmp_path / name, "helper", name)
        (tmp_path / name / "mine.py").write_text("from helper import value\n")
        (tmp_path / name / "folder").mkdir()
        module(tmp_path / name / "folder", "part", name)
    if package:
        (tmp_path / "a" / "folder" / "__init__.py").write_text("")
    for name in "abab":
        assert import_named("mine:value", [name]) == name
        assert import_named("folder.part:value", [name]) == name


def test_what_a_module_puts_on_the_path_stays_and_folders_that_were_served_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module(tmp_path / "vendor", "carried", "found")
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.py").write_text(
        f"import sys\nsys.path.insert(0, {str(tmp_path / 'vendor')!r})\n\ndef late():\n    import carried\n    return carried.value\n"
    )
    assert import_named("mine:late", ["recipe"])() == "found"
    module(tmp_path / "other", "yours", "x")
    import_named("yours:value", ["other"])
    assert str(tmp_path / "recipe") not in sys.path and str(tmp_path / "vendor") in sys.path


@pytest.mark.parametrize("name", ["json", "math"])
def test_a_name_that_is_in_use_is_not_taken_away(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    module(tmp_path, name, "mine")
    known = __import__(name)
    with pytest.raises(ValueError, match=f"the module name '{name}' in .* is taken by .*another name"):
        import_named(f"{name}:value")
    assert sys.modules[name] is known


def test_a_plain_folder_gives_way_to_an_installed_package_and_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hypothesis").mkdir()
    module(tmp_path / "hypothesis", "length", "x")
    with pytest.raises(ValueError, match=r"the module name 'hypothesis' in .* is taken by .*hypothesis/__init__.py"):
        import_named("hypothesis.length:value")


def test_the_error_says_where_it_was_looked_for_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "recipe"
    module(folder, "mine", "x")
    with pytest.raises(
        ValueError, match=f"no module 'yours' in {folder} or {tmp_path}, nor .*; put yours.py into one of"
    ):
        import_named("yours:value", [folder])
    with pytest.raises(
        ValueError, match=r"'mine' \(.*mine.py\) has no attribute 'values'. Did you mean 'mine:value'\?"
    ):
        import_named("mine:values", [folder])
    with pytest.raises(ValueError, match=r"has no attribute 'value.lowr'. Did you mean 'mine:value.lower'\?"):
        import_named("mine:value.lowr", [folder])
    for path in ("mine", ":value", "mine:", ".mine:value", "recipe/mine:value", "mine.py:value", None):
        with pytest.raises(ValueError, match=r"no 'pkg.mod:attr' path; .* write 'my_code:f'"):
            import_named(path, [folder])
    with pytest.raises(
        ValueError, match=r"no module 'unigrpo.accuracy' in this version of unigrpo; CHANGELOG.md lists"
    ):
        import_named("unigrpo.accuracy:integer_match")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_dependency", "bad.py:1 raised ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("value = 1 +", "bad.py:1 raised SyntaxError"),
        ("\nraise RuntimeError('boom')", "bad.py:2 raised RuntimeError: boom while 'bad' was imported"),
        ("import sys\nsys.exit('usage')", "bad.py:2 raised SystemExit: usage"),
        ("raise ValueError('mine')", "bad.py:1 raised ValueError: mine"),
    ],
)
def test_a_module_that_raises_is_named_with_its_line(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text(text + "\n")
    with pytest.raises(ValueError, match=said):
        import_named("bad:value")


@pytest.mark.smoke
def test_every_error_that_a_user_may_meet_is_here():
    """Classes of errors elsewhere are private to the room that catches them."""
    caught_at_once = {"StopNow", "Stopped", "YamlError", "_AtHead", "_Stop", "Refused"}
    found = {}
    for file in sorted(Path(errors.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name] = (file.name, {ast.unparse(base).rpartition(".")[2] for base in node.bases})
    kinds = {name for name, own in vars(builtins).items() if isinstance(own, type) and issubclass(own, BaseException)}
    for _ in range(len(found)):
        kinds |= {name for name, (_, bases) in found.items() if bases & kinds}
    own = {name: file for name, (file, _) in found.items() if name in kinds}
    assert {name for name, file in own.items() if file != "errors.py"} == caught_at_once
    assert all(f"``{name}``" in errors.__doc__ for name in own if own[name] == "errors.py")
    assert all(
        issubclass(getattr(errors, name), ValueError)
        for name in own.keys() - caught_at_once - {"Overdue", "Interrupted"}
    )
