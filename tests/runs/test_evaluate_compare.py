"""``unigrpo compare``: paired, exact where it can be, and only of what was measured alike."""

from __future__ import annotations

import json
from itertools import product
from math import erfc
from pathlib import Path

import numpy as np
import pytest

from unigrpo.runs.cli import main
from unigrpo.runs.evaluate.compare import bootstrap_test, compare, sign_test


def evaluation(folder, scores: list[list[float | None]], model="a", **changes):
    """A finished evaluation of a task ``sums``, a list of scores a row."""
    entry = {"metric": "accuracy", "template": "{prompt}", "judge": "x", "num_samples": len(scores[0])}
    entry["dataset"] = {"path": "rows", "rows": len(scores), "fingerprint": "f"}
    results = {
        "model": {"path": model},
        "seed": 0,
        "settings": {"text": {"temperature": 0.0}},
        "tasks": {"sums": entry},
        "finished": True,
    }
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({**results, **changes}))
    lines = [
        {"task": "sums", "row": row, "sample": sample, "prompt": f"{row} + 1?", "gold": str(row + 1), "score": score, "completion": f"{model} {score}"}
        for row, own in enumerate(scores)
        for sample, score in enumerate(own)
    ]  # fmt: skip
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


@pytest.mark.parametrize("gains", [[1, 1, 1, 1, 1, -1], [1, -1], [1, 1, 1], [0.5, -0.2, 0.1, 0]])
def test_the_sign_test_is_the_count_of_all_signs(gains):
    changed = [gain for gain in gains if gain]
    wins = sum(gain > 0 for gain in changed)
    extreme = abs(wins - len(changed) / 2)
    every = list(product([0, 1], repeat=len(changed)))
    share = sum(abs(sum(own) - len(changed) / 2) >= extreme for own in every) / len(every)
    assert sign_test(gains)[1] == pytest.approx(share)


def test_nothing_changed_says_nothing():
    assert sign_test([0.0] * 5)[1] == 1.0 and bootstrap_test([0.0] * 5, range(5))[1] == 1.0


def test_the_bootstrap_agrees_with_the_normal_law_and_keeps_its_level():
    rng = np.random.default_rng(0)
    gains = rng.normal(0.2, 1.0, 200)
    z = gains.mean() / (gains.std() / 200**0.5)
    assert bootstrap_test(gains.tolist(), range(200))[1] == pytest.approx(erfc(abs(z) / 2**0.5), abs=0.015)
    refused = [bootstrap_test(rng.normal(0, 1, 50).tolist(), range(50))[1] <= 0.05 for _ in range(200)]
    assert 0.02 <= np.mean(refused) <= 0.10


def test_what_got_better_and_worse_is_listed_with_both_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a = evaluation(Path("a"), [[0.0], [0.0], [1.0], [1.0], [None]])
    b = evaluation(Path("b"), [[1.0], [1.0], [0.0], [1.0], [1.0]], model="b")
    found = compare(a, b)["tasks"]["sums"]
    assert (found["a"], found["b"], found["prompts"]) == (0.5, 0.75, 4) and found["difference"]["mean"] == 0.25
    assert found["p_value"] == 1.0 and "McNemar" in found["test"]
    assert [(own["row"], own["a"], own["b"]) for own in found["better"]] == [
        (0, "a 0.0", "b 1.0"),
        (1, "a 0.0", "b 1.0"),
    ]
    assert [own["prompt"] for own in found["worse"]] == ["2 + 1?"]
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines()) and "+25.0" in out and "got worse, 1 of 1" in out


def test_pairs_are_sharper_than_two_means(tmp_path):
    rng = np.random.default_rng(0)
    right = (rng.random(200) < 0.5).astype(float)
    after = np.where(np.arange(200) % 20 == 0, 1.0, right)
    a = evaluation(tmp_path / "a", [[own] for own in right])
    b = evaluation(tmp_path / "b", [[own] for own in after], model="b")
    own = compare(a, b)["tasks"]["sums"]["difference"]
    assert own["low"] > 0 and own["high"] - own["low"] < 0.06  # Two means of 200 are 0.2 apart by chance.


def test_several_samples_are_compared_by_a_paired_bootstrap(tmp_path):
    a = evaluation(tmp_path / "a", [[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    b = evaluation(tmp_path / "b", [[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]], model="b")
    found = compare(a, b)["tasks"]["sums"]
    assert found["test"].startswith("paired bootstrap") and found["difference"]["mean"] == pytest.approx(1 / 3)
    assert [(own["row"], own["a"], own["b"], own["gain"]) for own in found["better"]] == [
        (0, "a 0.0", "b 1.0", 0.5),
        (1, "a 0.0", "b 1.0", 0.5),
    ]


CHANGES = {
    "seed": ({"seed": 1}, "seed 0, not 1"),
    "settings": ({"settings": {"text": {"temperature": 0.5}}}, "settings.text.temperature 0.0, not 0.5"),
    "tasks": ({"tasks": {"others": {"metric": "accuracy", "dataset": {}}}}, "tasks.sums"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_only_the_model_may_differ(name, tmp_path, capsys):
    changes, message = CHANGES[name]
    a, b = evaluation(tmp_path / "a", [[0.0]]), evaluation(tmp_path / "b", [[1.0]], model="b", **changes)
    assert main(["compare", a, b]) == 2
    said = capsys.readouterr().err
    assert f"differ in more than the model: {message}" in said and "--anyway" in said and said.count("\n") == 1
    status = main(["compare", a, b, "--anyway"])
    assert status == (2 if name == "tasks" else 0)
    assert ("no judged prompt in common" if name == "tasks" else "more than the model differs") in "".join(
        capsys.readouterr()
    )


def test_a_file_is_written_only_where_it_is_asked_for(tmp_path, capsys):
    a, b = evaluation(tmp_path / "a", [[0.0]]), evaluation(tmp_path / "b", [[1.0]], model="b")
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", a, b]) == 0 and sorted(tmp_path.rglob("*")) == before
    output = str(tmp_path / "compare.json")
    assert main(["compare", a, f"{b}/results.json", "--output", output]) == 0
    assert json.loads((tmp_path / "compare.json").read_text())["tasks"]["sums"]["b"] == 1.0
    assert main(["compare", a, b, "--output", output]) == 2 and "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("finished", "message"),
    [(None, "holds no results.json"), (False, "is not finished: call its `unigrpo evaluate` again")],
)
def test_what_cannot_be_compared_is_one_sentence(finished, message, tmp_path, capsys):
    a = evaluation(tmp_path / "a", [[0.0]])
    b = str(tmp_path) if finished is None else evaluation(tmp_path / "b", [[1.0]], finished=finished)
    assert main(["compare", a, b]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
