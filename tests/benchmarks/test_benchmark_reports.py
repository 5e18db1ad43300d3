"""The benchmark harness' reports: what is expected of the plain side, tables, the README, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import report
from .__main__ import parse
from .expected import SHARES, off, parts_of
from .measure import EXACT, Result
from .plain import Clock
from .report import BEGIN, END, README, write_readme


def parts(ms: float = 990.0, **shares: float) -> dict:
    """A report of the text workload as expected, but for what is given; the rest takes the difference."""
    spent = {**SHARES["text T=0"], **{name.replace("_", " "): share for name, share in shares.items()}}
    clock = Clock()
    clock.seconds.update(spent)
    return parts_of("text T=0", clock, 1.0, ms)


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({}, []),
        ({"ms": 1.29 * 990}, []),
        ({"ms": 1.31 * 990}, ["ms"]),
        ({"ms": 0.69 * 990}, ["ms"]),
        ({"LM_head": 0.43, "softmax_and_cast": 0.25, "argmax": 0.115, "attention": 0.065, "MLP": 0.085}, ["rest"]),
        ({"softmax_and_cast": 0.13, "argmax": 0.16}, ["softmax and cast", "argmax"]),
        ({"attention": 0.001, "MLP": 0.08}, ["attention"]),
        ({"argmax": 0.07, "sorting": 0.05}, ["sorting"]),
    ],
)
def test_milliseconds_and_shares_are_held_against_what_is_expected(given, wrong):
    found = parts(**given)
    assert found["off"] == off(found) == wrong
    assert found["as_expected"] is not bool(wrong)
    assert (report.parts_verdict(found) == "within 30 %") is not bool(wrong)


# ---- report and command ----


def example() -> dict:
    growth = {"axis": "completions", "x": [1.0, 2.0], "seconds": [1.0, 2.0], "slope": 1.0, "intercept": 0.0, "r2": 1.0}
    timed_parts = {"plain_parts": parts(1500.0, argmax=0.02, MLP=0.13)}
    results = {
        "text": Result(
            name="text", kind=EXACT, ours=1.0, plain=4.0, goal=5.0, floor=3.0, note="as it is", extra=timed_parts
        ),
        "growth": Result(name="line", kind=EXACT, value=1.0, extra=growth),
        "caches": Result(name="cache", kind=EXACT, skipped="none here"),
    }
    described = {"model": "mid", "parameters": 1, "vocabulary": 2, "dtype": "float32", "device": "cpu", "cpu": "x"}
    described |= {"threads": 1, "allocator": "warm", "torch": "2"}
    return {"environment": described, "results": [{"case": case, **own.as_dict()} for case, own in results.items()]}


def test_the_readme_tables_are_replaced_and_the_rest_left(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write_readme(example(), path)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text.count("| text | exact | 4.000 s | 1.000 s | x4.00 | 5 | 3 | below goal |") == 1
    assert "skipped: none here" in text and "- text: as it is" in text
    assert "vocabulary 2, float32, cpu (x), 1 thread(s), warm allocator, torch 2" in text
    assert "| text | 1500 | 990 | LM head 60 (60) %, softmax and cast 20 (20) %, argmax 2 (9) %," in text
    assert "| ms off: 1500 for 990; shares off: argmax, MLP |" in text
    path.write_text("nothing")
    with pytest.raises(ValueError, match="lacks the comments"):
        write_readme(example(), path)
    assert BEGIN in README.read_text() and END in README.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "text"], "add it to --only"),
        (["--only", "texts"], "['texts'] is unknown"),
        (["--from", "text.json"], "--from lacks it"),
        (["--from", "gpu.json"], "gpu.json holds no results"),
        (["--from", "nothing.json"], "nothing.json cannot be read"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_anything_runs(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("gpu.json").write_text(json.dumps({"stages": {}}))
    Path("text.json").write_text(json.dumps(example() | {"results": example()["results"][:1]}))
    with pytest.raises(SystemExit):
        parse([*words, "--plot", "linear.png"])
    assert message in capsys.readouterr().err
    assert parse(["--only", "growth,t2i", "--plot", "linear.png"]).only == ["growth", "t2i"]
