"""The list of mutants keeps up with the library, and the command tells a mutant that is found from one that is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ..support import ROOT
from .__main__ import summary, verdict
from .mutant import Mutant, read
from .run import baseline, copied, play


MUTANTS = read()
HALVED = Mutant(
    name="halved",
    file="unigrpo/sums.py",
    bug="The sum is half of what it should be.",
    old="return a + b",
    new="return (a + b) / 2",
    tests=("sums/test_sums.py",),
)


def test_every_mutant_can_be_planted_and_imported():
    faults = []
    for own in MUTANTS:
        try:
            own.check(ROOT)
        except ValueError as error:
            faults.append(str(error))
    assert not faults, "\n".join(faults)


def test_the_list_reaches_every_room_of_the_core():
    assert len(MUTANTS) >= 40 and all(own.bug.endswith(".") for own in MUTANTS)
    assert {own.file.split("/")[1] for own in MUTANTS} == {
        "algorithm",
        "samplers",
        "models",
        "training",
        "trainer.py",
        "sft.py",
    }
    assert all(own.tests for own in MUTANTS)
    for file, _, test in {own.partition("::") for mutant in MUTANTS for own in mutant.tests}:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text() if test else (ROOT / "tests" / file).is_file()


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of a small project whose one test file leaves one of its two functions alone."""
    monkeypatch.setattr("tests.mutants.run.PRELOADED", [])
    own = tmp_path / "own"
    (own / "unigrpo").mkdir(parents=True)
    (own / "tests" / "sums").mkdir(parents=True)
    (own / "tests" / "others").mkdir()
    (own / "unigrpo" / "__init__.py").write_text("")
    (own / "unigrpo" / "sums.py").write_text(
        "def add(a, b):\n    return a + b\n\n\ndef double(a):\n    return 2 * a\n"
    )
    test = "from unigrpo.sums import add, double\n\n\ndef test_it():\n    assert {}\n"
    (own / "tests" / "sums" / "test_sums.py").write_text(test.format("add(1, 2) == 3"))
    (own / "tests" / "sums" / "test_doubles.py").write_text(test.format("double(2) == 4"))
    return copied(own, tmp_path / "copy")


def test_outcomes(tree, monkeypatch):
    """Found, overlooked, found by the room, and found by time; the copy is as before each time."""
    before = (tree / HALVED.file).read_text()
    seconds = {own: baseline(tree, own) for own in HALVED.tests}
    found = play(tree, HALVED, seconds)
    assert (found.kind, found.by) == ("failed", "sums/test_sums.py::test_it")
    overlooked = replace(HALVED, old="2 * a", new="3 * a")
    assert play(tree, overlooked, seconds).kind == "passed"
    assert play(tree, overlooked, seconds, room=True).by == "sums/test_doubles.py::test_it"
    monkeypatch.setattr("tests.mutants.run.GRACE", 1.0)
    endless = replace(HALVED, new="while True:\n        pass\n    return 0")
    assert play(tree, endless, {"sums/test_sums.py": 0.0}).kind == "late"
    assert (tree / HALVED.file).read_text() == before


def test_what_is_no_kill(tree):
    """Code that does not run, and tests that fail by themselves."""
    for change, message in (
        ({"old": "return"}, r"halved: old stands 2 times in unigrpo/sums\.py, not once"),
        ({"new": "return (a + b"}, r"halved: unigrpo/sums\.py is no Python with new in it"),
        ({"new": "return (a + b)  # the same"}, r"halved: unigrpo/sums\.py computes the same"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(HALVED, **change).planted(tree)
    absent = replace(HALVED, old="def add(a, b)", new="import nothing_of_this_name\n\n\ndef add(a, b)")
    with pytest.raises(RuntimeError, match="No module named 'nothing_of_this_name'"):
        play(tree, absent, {"sums/test_sums.py": 1.0})
    (tree / "tests" / "sums" / "test_sums.py").write_text(
        "from unigrpo.sums import add\n\n\ndef test_it():\n    assert add(1, 2) == 4\n"
    )
    with pytest.raises(RuntimeError, match=r"tests/sums/test_sums\.py fails without any mutant"):
        baseline(tree, *HALVED.tests)


def test_a_module_that_cannot_be_imported_is_no_mutant():
    own = MUTANTS[0]
    with pytest.raises(ValueError, match="cannot be imported with new in it: ModuleNotFoundError"):
        replace(own, old="import torch\n", new="import nothing_of_this_name\n").check(ROOT)
    with pytest.raises(ValueError, match="has no kl_estimate with new in it"):
        replace(own, old="def kl_estimate", new="def kl_estimates").check(ROOT)


def test_a_survivor_that_is_known_to_be_harmless_is_told_apart():
    kinds = [(HALVED, "failed"), (HALVED, "late"), (HALVED, "passed"), (replace(HALVED, harmless="Why."), "passed")]
    rows = [{"name": str(n), "outcome": verdict(*own), "seconds": 30.0} for n, own in enumerate(kinds)]
    told = {"mutants": 4, "killed": 2, "by_time": 1, "harmless": ["3"], "survived": ["2"], "minutes": 2.0}
    assert summary(rows) == told
