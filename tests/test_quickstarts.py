"""The command behind the tables of quickstarts: it goes on after a kill, says what it measured, and the tables are its results."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from unigrpo.runs.cli import main

from . import figures, quickstarts
from .quickstart_tables import ROWS, Row, table, thought_lines
from .quickstarts import Code, code_of, measure, under_thoughts, unigrpo
from .support import ROOT


OLD, NEW = Code(commit="0" * 40, digest="old"), Code(commit="1" * 40, digest="new")

SMALL = (
    "max_steps=2",
    "logging_steps=1",
    "per_device_train_batch_size=8",
    "datasets.0.limit=8",
    "eval_datasets.0.limit=4",
)
RL = (*SMALL, "num_iterations=1", "steps=2", "max_completion_length=8")
MORE = ("datasets.1.limit=8", "datasets.2.limit=8", "eval_datasets.1.limit=4", "eval_datasets.2.limit=4")
TINY = {
    "quickstart": RL,
    "quickstart_image": (*RL, "eval_denoising_steps=1"),
    "quickstart_mixed": (*RL, *MORE, "per_device_train_batch_size=24", "task_overrides.t2i.steps=2"),
    "quickstart_sft": (*SMALL, "sampling.steps=4"),
}


def tiny(name: str) -> Row:
    """The row of that name with little of everything."""
    (own,) = (own for own in ROWS if own.name == name)
    return replace(own, runs=tuple(replace(run, overrides=(*run.overrides, *TINY[run.recipe])) for run in own.runs))


WALKED = ("quickstart/shuffled", "quickstart_sft/seed-0")
BY_PROCESSES = ("quickstart_mixed/seed-0", "quickstart_image/shuffled")


class Commands:
    """``unigrpo`` in this process; it keeps what was run, and at call number ``dies`` it is killed before it begins."""

    def __init__(self, dies: int | None = None) -> None:
        self.run: list[str] = []
        self.dies = dies

    def __call__(self, *words: str) -> str:
        if len(self.run) == self.dies:
            raise KeyboardInterrupt
        self.run.append(f"{words[0]} {words[1]}")
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            assert main([str(word) for word in words]) == 0
        return told.getvalue()


def test_killed_between_and_inside_rows_it_goes_on_and_measures_nothing_twice(tmp_path):
    rows, results = [tiny(name) for name in WALKED], tmp_path / "results.json"
    first, second, third = Commands(dies=4), Commands(), Commands()
    with pytest.raises(KeyboardInterrupt):
        measure(rows, tmp_path / "out", results, lambda: NEW, first)
    assert list(json.loads(results.read_text())) == ["quickstart/shuffled"]
    assert first.run[-1] == "sft quickstart_sft", "the row is half done"
    measure(rows, tmp_path / "out", results, lambda: NEW, second)
    assert second.run == ["train quickstart"]
    measure(rows, tmp_path / "out", results, lambda: NEW, third)
    assert third.run == []

    found = json.loads(results.read_text())
    assert set(found) == set(WALKED) and {own["commit"] for own in found.values()} == {NEW.commit}
    assert [name for name, own in found.items() if own["seconds"] is None] == ["quickstart_sft/seed-0"]
    assert found["quickstart/shuffled"]["measured"]["temperature 1"]["after"]["count"] == 4
    road = found["quickstart_sft/seed-0"]["measured"]
    assert road["quickstart"]["before"]["mean"] == road["quickstart_sft"]["after"]["mean"], (
        "rewards start where it ended"
    )
    for name, lines in (("quickstart", 2), ("quickstart_sft", 2)):
        assert [line.endswith("| `1111111` |") for line in table(name, found)[2:]] == [True] * lines


def test_pictures_under_other_thoughts_are_measured_before_and_after_once(tmp_path):
    """The run's own folder is measured after, with the run's overrides; what is there is read."""
    asked = []

    def evaluate(*words: str) -> str:
        asked.append(words)
        folder = Path(words[-1].removeprefix("output_dir="))
        folder.mkdir()
        share = {"mean": 0.9 if "--model" in words else 0.4}
        names = {"given": ["of_prompt"], "empty": ["of_prompt"], "swapped": ["of_prompt", "of_thought"]}
        thoughts = {name: dict.fromkeys(own, share) for name, own in names.items()}
        (folder / "thoughts.json").write_text(json.dumps({"thoughts": thoughts}))
        return ""

    (own,) = (own for own in ROWS if own.name == "quickstart_think_draw/seed-1")
    run, out = own.runs[-1], tmp_path / "quickstart_think_draw"
    found = under_thoughts(run, out, evaluate)
    assert under_thoughts(run, out, evaluate) == found and len(asked) == 2
    assert asked[1][:5] == ("evaluate", "quickstart_think_draw", "--thoughts", "--model", str(out))
    assert all("seed=1" in words for words in asked) and "--model" not in asked[0]
    accuracy = {
        when: {"mean": share, "low": share, "high": share} for when, share in (("before", 0.4), ("after", 0.8))
    }
    measured = {"quickstart_think_draw": {**accuracy, "gain_points": 40.0}, "thoughts": found}
    (line,) = thought_lines(own, measured)
    assert (
        line[:3] == ("seed 1", "40.0 % → 80.0 % [80.0, 80.0]", "+40.0 points") and line[3:] == ("40.0 → 90.0 %",) * 4
    )


def test_numbers_of_code_that_changes_meanwhile_are_not_kept(tmp_path):
    codes, results = iter([OLD, NEW]), tmp_path / "results.json"

    def trained(*words: str) -> str:
        (folder,) = (Path(word.removeprefix("output_dir=")) for word in words if word.startswith("output_dir="))
        folder.mkdir(parents=True)
        mean = {"mean": 0.5, "low": 0.4, "high": 0.6, "count": 8}
        summary = {
            "held_out_accuracy_before": mean,
            "held_out_accuracy_after": mean,
            "gain_points": 0,
            "train_seconds": 1,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        return ""

    with pytest.raises(SystemExit, match="the code changed while quickstart/lora ran"):
        measure([tiny("quickstart/lora")], tmp_path, results, lambda: next(codes), trained)
    assert not results.exists()
    measure([tiny("quickstart/lora")], tmp_path, results, lambda: NEW, trained)
    assert json.loads(results.read_text())["quickstart/lora"]["code"] == NEW.digest


def test_a_row_of_other_code_is_stale_and_measured_again(tmp_path):
    results = tmp_path / "results.json"
    accuracy = {"before": {"mean": 0.5}, "after": {"mean": 0.25, "low": 0.2, "high": 0.3}, "gain_points": -25.0}
    stored = {
        f"quickstart/{name}": {
            "commit": code.commit,
            "code": code.digest,
            "when": when,
            "measured": {"quickstart": accuracy},
        }
        for name, code, when in (("seed-0", OLD, "2020"), ("seed-1", NEW, "2021"))
    }
    results.write_text(json.dumps(stored))
    told = [line.split("| ")[1:] for line in table("quickstart", stored)[2:]]
    assert [own[1:3] for own in told] == [["50.0 % → 25.0 % [20.0, 30.0] ", "−25.0 points "]] * 2
    assert [own[-1] for own in told] == ["`0000000` |", "`1111111` |"]
    assert [line.split()[1] for line in quickstarts.listed(ROWS[:3], stored, NEW)] == ["stale,", "measured", "not"]
    commands = Commands(dies=0)
    measure([tiny("quickstart/seed-1")], tmp_path, results, lambda: NEW, commands)
    with pytest.raises(KeyboardInterrupt):
        measure([tiny("quickstart/seed-0")], tmp_path, results, lambda: NEW, commands)


def test_the_code_is_what_git_holds_of_it_without_its_texts(tmp_path):
    def commit() -> Code:
        for words in (["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "."]):
            subprocess.run(["git", *words], cwd=tmp_path, check=True)
        return code_of(tmp_path)

    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for folder in quickstarts.CODE:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "code.py").write_text("")
    seen = [commit()]
    for file, counts in (
        ("rewards/README.md", False),
        ("tests.py", False),
        ("recipes/a.yaml", True),
        ("rewards/code.py", True),
    ):
        (tmp_path / file).write_text("1")
        if counts:
            with pytest.raises(SystemExit, match=rf"no commit holds, commit them first:\n.* {file}"):
                code_of(tmp_path)
        seen.append(commit())
        assert (seen[-1].digest != seen[-2].digest) == counts and seen[-1].commit != seen[-2].commit, file


def test_a_command_of_another_folder_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstarts, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"the installed command is that of .*unigrpo.*: `pip install -e \.` in"):
        unigrpo("--version")


@pytest.mark.smoke
def test_the_tables_are_the_results():
    found = json.loads(quickstarts.RESULTS.read_text())
    pages = {page: page.read_text() for page in quickstarts.PAGES}
    marks = [name for text in pages.values() for name in re.findall("<!-- measured:(.*) -->", text)]
    assert {own.name for own in ROWS} >= set(found)
    assert sorted(marks) == sorted({"summary", *(name.partition("/")[0] for name in found)})
    for page, text in pages.items():
        assert quickstarts.with_tables(text, found) == text, f"write {page} again"


def test_the_figures_are_the_results():
    text = figures.README.read_text()
    assert figures.with_table(text, json.loads(figures.FIGURES.read_text())) == text


KILLED = """
import sys
from pathlib import Path
from tests.test_quickstarts import BY_PROCESSES, NEW, tiny
from tests.quickstarts import measure
measure(map(tiny, BY_PROCESSES), Path(sys.argv[1]), Path(sys.argv[2]), lambda: NEW)
"""


@pytest.mark.processes
def test_the_installed_command_is_killed_and_goes_on(tmp_path):
    """SIGKILL for the command and the run that it waits for, once its first row is there and the second has begun."""
    results = tmp_path / "results.json"
    words = [sys.executable, "-c", KILLED, str(tmp_path / "out"), str(results)]
    started = subprocess.Popen(words, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert started.stdout.readline().startswith("quickstart_mixed/seed-0 {")
    while not list(tmp_path.glob("out/*/quickstart_image-shuffled/starts.txt")):
        time.sleep(0.01)
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate()
    first = json.loads(results.read_text())
    assert list(first) == ["quickstart_mixed/seed-0"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "quickstart_mixed/seed-0 was measured on this code already" in done.stdout
    both = json.loads(results.read_text())
    assert both["quickstart_mixed/seed-0"] == first["quickstart_mixed/seed-0"]
    assert [own["seconds"] is None for own in both.values()] == [True, False], "in the order of the tables"
    (image,), mixed = table("quickstart_image", both)[2:], table("quickstart_mixed", both)[2:]
    assert re.search(r"shuffled among pictures \| [\d.]+ % → .* \| [\d.]+ → [\d.]+ \| `1111111` \|$", image)
    assert [line.split("(`")[1][:4] for line in mixed] == ["t2i`", "mmu`", "text"]
