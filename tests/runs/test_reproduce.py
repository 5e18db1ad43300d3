"""A result measured again: plans that need nothing, cards that cannot be changed unseen, and stages that go on after kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from unigrpo.runs.cli import main
from unigrpo.runs.report.read import read_folder
from unigrpo.runs.reproduce.card import seal
from unigrpo.runs.reproduce.command import reproduce
from unigrpo.runs.reproduce.pictures import SIZE, write_pictures
from unigrpo.runs.reproduce.table import REPRODUCTIONS

from ..support import ROOT
from ..support.reproductions import card_of
from ..support.run_folders import run_folder


EVERY = [(name, budget) for name, own in REPRODUCTIONS.items() for budget in own.budgets]


@pytest.mark.parametrize("name,budget", EVERY)
def test_a_plan_says_stages_time_memory_and_expectation_and_leaves_nothing(
    name, budget, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", name, "--budget", budget, "--plan"]) == 0
    said = capsys.readouterr().out
    own = REPRODUCTIONS[name].budgets[budget]
    for words in ("1. measure before: ", "2. train: ", "3. measure after", "4. card", "expected: held-out"):
        assert words in said, said
    assert ("memory" in said and f": fits {own.card:g}" in said) == bool(own.card)
    assert f"--num_processes {own.processes} " in said or own.processes == 1
    if "day" in budget:
        days = float(budget.partition("gpu-")[2].removesuffix("days").removesuffix("day") or 1)
        spent = float(said.partition("and not measured: ")[2].split()[0])
        assert 0.2 * 24 * days < spent < 24 * days
    assert list(tmp_path.iterdir()) == []


@pytest.mark.smoke
@pytest.mark.parametrize(
    "after,words,said",
    [
        (0.88, (), "reproduced"),
        (0.60, (), "outside the expectation: gain 2.0 is not in [15, 40]"),
        (0.88, ("seed=1",), "not comparable: settings were changed (seed=1)"),
    ],
)
def test_a_verdict_compares_with_what_was_written_beforehand(after, words, said):
    card = card_of(after, words=words)
    assert card["verdict"].startswith(said) and card["measured"]["gain"] == pytest.approx(100 * (after - 0.58))


def checked(card: dict, tmp_path: Path, capsys) -> tuple[int, str]:
    (tmp_path / "card.json").write_text(json.dumps(card))
    status = main(["reproduce", "--check", str(tmp_path / "card.json")])
    return status, capsys.readouterr().out


def test_a_card_of_this_installation_is_whole_and_nothing_differs(tmp_path, capsys):
    status, said = checked(card_of(words=("learning_rate=1e-4",)), tmp_path, capsys)
    assert status == 0 and "as it was sealed" in said and "the same as of this installation" in said


@pytest.mark.parametrize("key", sorted(card_of()))
def test_no_entry_of_a_card_changes_unseen(key, tmp_path, capsys):
    card = card_of()
    card[key] = (
        {**card[key], "more": 1}
        if isinstance(card[key], dict)
        else [1]
        if isinstance(card[key], list)
        else f"{card[key]}0"
    )
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert main(["reproduce", "--check", str(tmp_path / "card.json")]) in (1, 2)


def test_a_resealed_verdict_that_its_numbers_do_not_bear_is_seen(tmp_path, capsys):
    card = {**card_of(0.60), "verdict": card_of(0.88)["verdict"]}
    status, said = checked({**card, "hash": seal(card)}, tmp_path, capsys)
    assert status == 1 and "as it was sealed" in said and "verdict: FAILED" in said


def test_another_installation_is_told_what_differs(tmp_path, capsys):
    card = card_of()
    card["versions"]["torch"], card["code"] = "1.0", "f" * 16
    card["settings"]["config"]["learning_rate"], card["expected"]["gain"] = 0.5, [1.0, 2.0]
    card["verdict"] = "outside the expectation: gain 30.0 is not in [1, 2]"
    status, said = checked({**card, "hash": seal(card)}, tmp_path, capsys)
    assert status == 0
    for words in ("versions.torch was", "code was ffff", "settings.config.learning_rate was 0.5", "expected.gain was"):
        assert f"differs here: {words}" in said, said


@pytest.mark.parametrize(
    "words,said",
    [
        (["tooy"], "NAME='tooy' is not valid: did you mean 'toy'?"),
        (["toy", "--budget", "day"], "--budget='day' is not valid"),
        (["toy", "output_dir=x"], "a reproduction has its own folder"),
        (["toy", "--output-dir", "."], "holds files and no reproduction"),
        (["math-mmada", "--budget", "8gpu-day", "use_cpu=true"], "accelerate launch --num_processes 8 -m unigrpo reproduce math-mmada"),
        (["--check", "nowhere.json"], "cannot be read"),
        (["--check", "mine.txt"], "is no card of `unigrpo reproduce`"),
        (["toy", "seed=1", "--output-dir", "other"], "reproduces something else: "),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_before_anything_is_written(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    start = {"name": "toy", "budget": "minutes", "settings": card_of()["settings"]}
    (tmp_path / "other" / "reproduce.json").write_text(json.dumps(start))
    before = sorted(tmp_path.rglob("*"))
    assert main(["reproduce", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_card_is_drawn_with_its_numbers(tmp_path):
    card = card_of()
    write_pictures(card, read_folder(run_folder(tmp_path / "run")), tmp_path)
    with Image.open(tmp_path / "card.png") as picture:
        assert picture.size == SIZE and len(picture.getcolors(10**6)) > 50
    page = (tmp_path / "card.html").read_text()
    for words in ("58.0 % → 88.0 %", "reproduced: within", card["hash"], card["code"]):
        assert words in page


def test_a_run_that_is_stopped_names_the_command_that_goes_on_with_the_reproduction(tmp_path, monkeypatch):
    told = []

    def stopped(recipe, go_on):
        told.append(go_on)
        raise KeyboardInterrupt

    monkeypatch.setattr("unigrpo.runs.train.run_recipe", stopped)
    out = tmp_path / "my folder"
    with pytest.raises(KeyboardInterrupt):
        reproduce("toy", None, ["max_steps=9"], str(out))
    first = next(iter(REPRODUCTIONS["toy"].budgets))
    assert told == [f"unigrpo reproduce toy --budget {first} max_steps=9 --output-dir '{out}'"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_twice_it_goes_on_and_ends_in_a_whole_card(tmp_path, capsys):
    """Killed after it measured, and after its second checkpoint; a last start does the rest, one more start nothing."""
    out = tmp_path / "out"
    words = ["max_steps=9", "eval_datasets.0.limit=8", "save_steps=3", "per_device_train_batch_size=16"]
    start = [sys.executable, "-m", "unigrpo", "reproduce", "toy", *words, "--output-dir", str(out)]
    for event in ("before.json", "checkpoint-6/unigrpo_manifest.json"):
        process = subprocess.Popen(start, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not (out / "run" / event).exists():
            assert process.poll() is None, process.stderr.read().decode()[-2000:]
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    done = subprocess.run(start, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1. measure before: 8 held-out rows: done" in done.stdout and "(goes on from step 6)" in done.stdout
    card = json.loads((out / "card.json").read_text())
    assert card["hash"] == seal(card) and card["steps"] == 9 and card["verdict"].startswith("not comparable")
    steps = [own["step"] for own in read_folder(out / "run").metrics if "loss" in own]
    assert steps == list(range(1, 10))
    assert reproduce("toy", None, words, str(out)) == card
    assert main(["reproduce", "--check", str(out / "card.json")]) == 0
