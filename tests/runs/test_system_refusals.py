"""What the operating system refuses a command, whichever it is: one sentence and status 2, as any other mistake."""

from __future__ import annotations

import json

import pytest

from unigrpo.runs.cli import main
from unigrpo.runs.mistakes import said_of


LONG = "x" * 300
"""Longer than a file system's names."""

COMMANDS = {
    "sample": ["sample", LONG, "hi"],
    "sample, a path": ["sample", f"./{LONG}/{LONG}", "hi"],
    "sample, picture": ["sample", "builtin:shapes", "What shape is it?", "--image", LONG],
    "sample, output": ["sample", "builtin:shapes", "a red circle", "--task", "t2i", "--steps", "1", "--output", LONG],
    "sample, a file": [
        "sample",
        "builtin:shapes",
        "a red circle",
        "--task",
        "t2i",
        "--steps",
        "1",
        "--output",
        "file",
    ],
    "sample, full": ["sample", "builtin:shapes", "a red circle", "--task", "t2i", "--steps", "1", "--output", "full"],
    "inspect": ["inspect", LONG],
    "merge": ["merge", LONG, "out"],
    "evaluate": ["evaluate", "builtin:arithmetic", "--tasks", "arithmetic", "--adapter", LONG],
    "evaluate, rows": ["evaluate", "builtin:arithmetic", "--tasks", "gsm8k", "--data", f"gsm8k={LONG}"],
    "report": ["report", LONG],
    "watch": ["watch", LONG],
    "compare": ["compare", LONG, LONG],
    "rewards": ["rewards", "quickstart", "--data", "rows.jsonl", "--output", f"full/{LONG}"],
    "recipes": ["recipes", "copy", "quickstart", "--to", LONG],
    "keys": ["keys", f"{LONG}:f"],
    "train, model": ["train", "quickstart", f"model.path={LONG}", "output_dir=out"],
    "train, rows": ["train", "quickstart", f"datasets.0.path={LONG}", "output_dir=out"],
    "train, policy": ["train", "quickstart", f"policy={LONG}:x", "output_dir=out"],
    "train, settings": ["train", "quickstart", f"fsdp_config={LONG}", "output_dir=out"],
    "benchmark": ["benchmark", "--table-only", "--output-dir", "file"],
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_ends_in_a_traceback(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "w1", "completion": "1", "solution": "1"}) + "\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "0000.png").symlink_to("/dev/full")
    assert main(COMMANDS[name]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("unigrpo: error: ") and len(error[-1]) < 1_500


def test_what_is_said_names_the_file_and_a_bug_stays_one():
    told = said_of(PermissionError(13, "Permission denied", f"/{LONG}"))
    assert told.startswith("'/xxx") and "Permission denied. Free space there, or give another path" in told
    assert len(told) < 400
    for bug in (KeyError("missing"), ConnectionResetError(104, "Connection reset"), TypeError("no")):
        with pytest.raises(type(bug)):
            said_of(bug)


@pytest.mark.parametrize("number", ["0", "-1"])
def test_no_answers_are_no_question(number, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["sample", "builtin:arithmetic", "hi", "--num", number])
    assert "is no count; give a whole number from 1 on" in capsys.readouterr().err


def test_an_engine_that_is_not_installed_is_one_sentence(monkeypatch, tmp_path, capsys):
    """transformers asks for the package while it reads its arguments."""
    missing = ModuleNotFoundError("The 'deepspeed>=0.9.3' distribution was not found")

    def fails(*_args, **_kwargs):
        raise missing

    monkeypatch.setattr("unigrpo.runs.build.UniGRPOConfig", fails)
    assert main(["train", "quickstart", f"output_dir={tmp_path / 'out'}"]) == 2
    assert "deepspeed>=0.9.3" in capsys.readouterr().err.splitlines()[-1]
