"""The benchmark harness' reports: what is expected of the plain side, tables, the README, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import __main__, report
from .__main__ import main, parse
from .expected import EXPECTED_MS, SHARES, off, parts_of
from .measure import EXACT, Result
from .plain import Clock
from .readme import COMMENTS, README, write_readme


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


def test_nothing_is_expected_of_other_sizes():
    found = parts_of("text T=0", Clock(), 1.0, 1.0, comparable=False)
    assert off(found) == [] and "off" not in found
    assert EXPECTED_MS.keys() == SHARES.keys()


# ---- report and command ----


def example() -> dict:
    growth = {"axis": "completions", "x": [1.0, 2.0], "seconds": [1.0, 2.0], "slope": 1.0, "intercept": 0.0, "r2": 1.0}
    timed_parts = {"plain_parts": parts(1500.0, argmax=0.02, MLP=0.13)}
    results = [
        Result(name="text", kind=EXACT, ours=1.0, plain=4.0, goal=5.0, floor=3.0, note="as it is", extra=timed_parts),
        Result(name="line", kind=EXACT, value=1.0, extra=growth),
        Result(name="cache", kind=EXACT, skipped="none here"),
    ]
    described = {"model": "mid", "parameters": 1, "vocabulary": 2, "dtype": "float32", "device": "cpu", "cpu": "x"}
    described |= {"threads": 1, "allocator": "warm", "torch": "2"}
    return {
        "environment": described,
        "results": [
            {"case": case, **own.as_dict()} for case, own in zip(("text", "growth", "caches"), results, strict=True)
        ],
    }


def device_example() -> dict:
    hottest = [{"part": "void kernel<T>()", "share": 0.5, "ms": 1.0}]
    line = {"name": "t2i", "seconds": 1.0, "rate": 2.0, "unit": "images/s", "peak_gb": 3.0, "tflops": 4.0}
    return {"environment": example()["environment"], "device": [line | {"share_of_limit": 0.1, "hottest": hottest}]}


def placeholders() -> str:
    return "before\n" + "between\n".join(f"{begin}\nold\n{end}\n" for begin, end in COMMENTS.values()) + "after\n"


def test_the_readme_tables_are_replaced_and_the_rest_left(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(placeholders())
    for _ in range(2):
        write_readme(example(), path)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and text.count("old") == 1
    assert text.count("| text | exact | 4.000 s | 1.000 s | x4.00 | 5 | 3 | below goal |") == 1
    assert "skipped: none here" in text and "- text: as it is" in text
    assert "vocabulary 2, float32, cpu (x), 1 thread(s), warm allocator, torch 2" in text
    assert "| text | 1500 | 990 | LM head 60 (60) %, softmax and cast 20 (20) %, argmax 2 (9) %," in text
    assert "| ms off: 1500 for 990; shares off: argmax, MLP |" in text
    path.write_text("nothing")
    with pytest.raises(ValueError, match="lacks the comments"):
        write_readme(example(), path)
    assert all(comment in README.read_text() for pair in COMMENTS.values() for comment in pair)


def test_a_device_has_a_table_of_its_own_in_the_readme(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(placeholders())
    write_readme(device_example(), path)
    cases, device = path.read_text().split("between\n")
    assert "old" in cases and "old" not in device and device.endswith("\nafter\n")
    assert "| t2i | 1.000 | 2.00 images/s | 3.0 | 4.0 | 10.0 % | void kernel&lt;T>() 50 % |" in device


def test_what_is_off_is_printed_under_the_table(capsys):
    report.show(json.loads(json.dumps(example())))
    shown = capsys.readouterr().out
    assert "below goal" in shown and "text: as it is" in shown
    assert "ms off: 1500 for 990; shares off: argmax, MLP" in " ".join(shown.split())
    right = {**example()["results"][0], "extra": {"plain_parts": parts()}}
    assert report.part_lines([right])[0].endswith("within 30 %")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "tiny"], "a report of a device"),
        (["--size", "8b", "--device", "cuda"], "a report of a device"),
        (["--from", "gpu.json"], "a report of a device"),
        (["--only", "text"], "add it to --only"),
        (["--from", "text.json"], "--from lacks it"),
        (["--from", "nothing.json"], "nothing.json cannot be read"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_anything_runs(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("gpu.json").write_text(json.dumps(device_example()))
    Path("text.json").write_text(json.dumps(example() | {"results": example()["results"][:1]}))
    with pytest.raises(SystemExit):
        parse([*words, "--plot", "linear.png"])
    assert message in capsys.readouterr().err


def test_saved_reports_are_shown_and_written(tmp_path, monkeypatch, capsys):
    written = []
    monkeypatch.setattr(__main__, "write_readme", written.append)
    for number, saved in enumerate((example(), device_example())):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(saved))
        assert main(["--from", str(path), "--readme"]) == 0
        assert written[-1] == saved
    assert "images/s" in capsys.readouterr().out


def test_the_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    report.plot_growth(example(), tmp_path / "linear.png")
    assert (tmp_path / "linear.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_refuses_unknown_cases(capsys):
    assert parse(["--only", "text,t2i"]).only == ["text", "t2i"]
    with pytest.raises(SystemExit):
        parse(["--only", "texts"])
    assert "'texts'" in capsys.readouterr().err
