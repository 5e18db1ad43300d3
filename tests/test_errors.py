"""Names that users write: where their code is looked for, and what is said when it is not found."""

from __future__ import annotations

import sys

import pytest

from unigrpo import errors
from unigrpo.errors import check_choice, import_named


pytestmark = pytest.mark.smoke


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What a test imports and where Python looks is forgotten after it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(errors, "_loaded", set())
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


def test_what_a_module_imports_later_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module(tmp_path / "recipe", "beside", "found")
    (tmp_path / "recipe" / "mine.py").write_text("def late():\n    import beside\n    return beside.value\n")
    assert import_named("mine:late", ["recipe"])() == "found"


@pytest.mark.parametrize("name", ["json", "math"])
def test_a_name_that_is_in_use_is_not_taken_away(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    module(tmp_path, name, "mine")
    known = __import__(name)
    with pytest.raises(ValueError, match=f"the module name '{name}' of .*{name}.py is taken by .*another name"):
        import_named(f"{name}:value")
    assert sys.modules[name] is known


def test_the_error_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "recipe"
    module(folder, "mine", "x")
    with pytest.raises(
        ValueError, match=f"no module 'yours' in {folder} or {tmp_path}, nor among the installed packages"
    ):
        import_named("yours:value", [folder])
    with pytest.raises(
        ValueError, match=r"'mine' \(.*mine.py\) has no attribute 'values'. Did you mean 'mine:value'\?"
    ):
        import_named("mine:values", [folder])
    for path in ("mine", ":value", "mine:", ".mine:value", None):
        with pytest.raises(ValueError, match=r"no 'pkg.mod:attr' path"):
            import_named(path, [folder])
    (folder / "mine.py").write_text("import no_such_dependency\n")
    del sys.modules["mine"]
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        import_named("mine:value", [folder])


def test_a_wrong_choice_names_the_nearest():
    check_choice("key", "left", ("left", "right"))
    with pytest.raises(
        ValueError, match=r"key='lefd' is not valid: did you mean 'left'\? choose one of \['left', 'right'\]"
    ):
        check_choice("key", "lefd", ("left", "right"))
