"""``unigrpo rewards``: a file of completions scored without a model, and the list of what ships."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from unigrpo.rewards import REWARDS
from unigrpo.runs.cli import main
from unigrpo.runs.score_report import described


ROWS = [
    ("1+1?", "<think>2</think>2", "2"),
    ("1+1?", "<think>\x1b[31m\u202e</think>3", "2"),
    ("2+2?", "it is 4", "4"),
    ("2+2?", "<answer>\n4</answer>", "4"),
    ("3+3?", "6", None),
]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "recipe.yaml").write_text(
        "model: {path: 'builtin:arithmetic'}\ndatasets: [{path: 'builtin:arithmetic'}]\n"
        "rewards:\n  - {name: exact_match, weight: 2.0}\n  - {name: think_format, weight: 0.5}\n"
        "  - {name: tag_count, weight: 0.0}\n"
    )
    write(tmp_path / "rows.jsonl", ROWS)
    return str(tmp_path / "recipe.yaml")


def write(path, rows):
    lines = [json.dumps({"prompt": prompt, "completion": own, "solution": gold}) for prompt, own, gold in rows]
    path.write_text("\n\n".join(lines) + "\n")


def table(shown):
    """Cells of the report's first table by the reward's name."""
    lines = [line.split() for line in shown.splitlines()]
    start = next(place for place, words in enumerate(lines) if words[:2] == ["reward", "weight"])
    return {words[0]: words[1:] for words in lines[start + 1 : start + 4]}


@pytest.mark.smoke
def test_a_report_says_what_each_reward_gave(recipe, capsys):
    assert main(["rewards", recipe, "--data", "rows.jsonl", "--output", "scores.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "rows.jsonl: 5 rows, 3 prompts, 2 of them with several rows" in shown
    cells = table(shown)
    # weight, mean, spread, min, max, none, ties
    assert cells["exact_match"][:7] == ["2", "0.5", "0.5", "0", "1", "20.0%", "0.0%"]
    assert cells["think_format"][:7] == ["0.5", "0.4", "0.4899", "0", "1", "0.0%", "100.0%"]
    assert cells["tag_count"][:7] == ["0", "0.3", "0.2449", "0", "0.5", "0.0%", "50.0%"]
    assert all(float(own[7]) >= 0 for own in cells.values())
    assert "\\x1b[31m\\u202e" in shown and "<answer>\\n4" in shown and "\x1b" not in shown and "\u202e" not in shown
    below = shown.partition("disagree most")[2].splitlines()[2:4]
    assert [line.split()[0] for line in below] == ["3", "7"]
    lines = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert [line["line"] for line in lines] == [1, 3, 5, 7, 9]
    assert [line["reward"] for line in lines] == [2.5, 0.5, 0.0, 2.0, 0.0]
    assert lines[4]["rewards"] == {"exact_match": None, "think_format": 0.0, "tag_count": 0.0}


def test_nothing_is_overwritten(recipe, tmp_path, capsys):
    (tmp_path / "kept.jsonl").write_text("kept")
    assert main(["rewards", recipe, "--data", "rows.jsonl", "--output", "kept.jsonl"]) == 2
    assert "'kept.jsonl' exists already" in capsys.readouterr().err
    assert (tmp_path / "kept.jsonl").read_text() == "kept"
    assert main(["rewards", recipe, "--data", "rows.jsonl", "--output", "no/such.jsonl"]) == 2
    assert "cannot be written (No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no rows"),
        ('{"prompt": "x", "completion": "y", "solution": "1"}\n{oops', "rows.jsonl, line 2 is no JSON"),
        ("[1]", "line 1 is a list"),
        ('{"prompt": "x"}', "line 1 has no `completion`, only ['prompt']"),
        ('{"prompt": 1, "completion": "y"}', "`prompt` must be a text"),
        ('{"prompt": "x", "completion": 5}', "`completion` must be a text, got 5"),
        ('{"prompt": "x", "completion": "y", "task": "poem"}', "`task` is 'poem': choose one of"),
        ('{"prompt": "x", "completion": "y", "completion_ids": 3}', "`completion_ids` must be a list"),
        ('{"prompt": "x", "completion": "y", "answer": "1"}', "needs a `solution` column in the dataset, and there is none (its columns are answer, prompt)"),
        (b"\xff\xfe", "is no UTF-8 text"),
        (None, "cannot be read (No such file or directory)"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_scored_is_one_sentence(recipe, tmp_path, text, words, capsys):
    (tmp_path / "rows.jsonl").unlink()
    if text is not None:
        (tmp_path / "rows.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["rewards", recipe, "--data", "rows.jsonl", "--output", "scores.jsonl"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("unigrpo: error: ") and words in error and error.count("\n") == 1
    assert not (tmp_path / "scores.jsonl").exists() or not (tmp_path / "scores.jsonl").read_text()


def test_many_rows_show_their_progress_and_pictures_are_scored(recipe, tmp_path, capsys, monkeypatch):
    from PIL import Image

    Image.new("RGB", (16, 16), "red").save("red.png")
    rows = [{"prompt": "red", "completion": "red.png", "task": "t2i", "colour": "red"}] * 300
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["rewards", recipe, "--data", "rows.jsonl", "rewards=[{name: colour}]"]) == 0
    shown = capsys.readouterr()
    assert "scoring rows.jsonl" in shown.err and "100%" in shown.err
    assert "colour" in shown.out and "disagree" not in shown.out


def test_every_reward_is_listed_with_its_range(capsys):
    assert main(["rewards"]) == 0
    bare = capsys.readouterr().out
    assert main(["rewards", "--list"]) == 0
    assert capsys.readouterr().out == bare
    for name, path in REWARDS.items():
        sentence, limits = described(path)
        assert limits and len(sentence) > 20, name
        assert any(line.split()[0] == name and limits in line for line in bare.splitlines() if line.strip())
    assert main(["rewards", "--data", "rows.jsonl"]) == 2
    assert "or no arguments for the list" in capsys.readouterr().err


def test_a_missing_extra_is_one_sentence(recipe, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    assert main(["rewards", recipe, "--data", "rows.jsonl", "rewards=[{name: json_schema, args: {timeout: 2}}]"]) == 2
    assert "rewards[0]: json_schema needs the package jsonschema" in capsys.readouterr().err
