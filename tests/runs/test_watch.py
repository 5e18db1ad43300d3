"""Runs side by side: what a folder is said to do, at whatever moment it is looked at."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket

import pytest

from unigrpo.runs.cli import main
from unigrpo.runs.watch import Tail, seconds_a_step, sparkline, watch
from unigrpo.terminal import PlainConsole
from unigrpo.training.checkpoints.lock import LOCK, locked

from ..support.escapes import TEXTS, obeyed, unstyled
from ..support.run_folders import line, run_folder


def shown(capsys, *words: str) -> str:
    assert main(["watch", *map(str, words)]) == 0
    return " ".join(re.sub("[│┃━╇─┼]", " ", capsys.readouterr().out).split())


@pytest.mark.smoke
def test_without_a_terminal_one_table_has_all_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path / "a")
    run_folder(tmp_path / "b", steps=3, finished=False)
    found = shown(capsys, "a", "b", "c")
    assert "a 6/6 1.6 0.006 0.0167 50.0 % → 70.0 %" in found and "finished 4 s/step ▁▂▄▅▇█" in found
    assert "b 3/6 1.3 0.003 0.0333 50.0 %" in found and "4 s/step, 12 s left" in found
    assert "c waiting: the folder is not there yet" in found.replace(
        "waiting: the folder is", "waiting: the folder is"
    )


@pytest.mark.parametrize("case", ["killed", "running", "starting", "elsewhere", "unreadable", "empty"])
def test_the_state_of_a_run_is_what_its_lock_says(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_folder(tmp_path / "r", steps=0 if case == "starting" else 3, finished=False)
    os.utime(folder / "metrics.jsonl", (0, 0))
    holder = {"host": socket.gethostname(), "pid": 2**22 + 1, "birth": "gone", "since": "then"}
    if case in ("running", "starting"):
        with locked(folder):
            holder = json.loads((folder / LOCK).read_text())
    if case != "empty":
        text = json.dumps(holder | ({"host": "elsewhere"} if case == "elsewhere" else {}))
        (folder / LOCK).write_text("" if case == "unreadable" else text)
    said = {"killed": "stopped", "empty": "stopped", "elsewhere": "on another", "unreadable": "on another"}
    found = shown(capsys, "r", "--once")
    assert said.get(case, case) in found and re.search(r"\d h \d\d min ago", found)


def test_a_terminal_follows_a_run_from_before_its_start_to_its_end(tmp_path, monkeypatch):
    """Each look sees what was written since the last: nothing, a torn line, its rest, a resumed run's shorter file, the end."""
    folder, done = tmp_path / "run", run_folder(tmp_path / "done")
    out = PlainConsole(file=io.StringIO(), force_terminal=True, width=110)
    frames: list[str] = []
    log = folder / "metrics.jsonl"

    def begin():
        run_folder(folder, steps=2, finished=False)

    def tear():
        with log.open("a") as file:
            file.write(json.dumps(line(3))[:40])

    def mend():
        with log.open("a") as file:
            file.write(json.dumps(line(3))[40:] + "\n")

    def resume():
        log.write_text(json.dumps(line(1)) + "\n")

    def end():
        shutil.rmtree(folder)
        shutil.copytree(done, folder)

    acts = iter([begin, tear, mend, resume, end])

    def pause():
        frames.append(unstyled(out.file.getvalue()))
        out.file.seek(0)
        out.file.truncate()
        next(acts)()

    watch([str(folder)], out=out, pause=pause)
    steps = [next((word for word in frame.split() if word.endswith("/6")), None) for frame in frames]
    assert steps == [None, "2/6", "2/6", "3/6", "1/6"]
    assert "6/6" in out.file.getvalue() and "not there yet" in frames[0]


def test_ctrl_c_ends_it_with_130_and_gives_the_cursor_back(tmp_path, monkeypatch, capsys):
    out = PlainConsole(file=io.StringIO(), force_terminal=True, width=110)

    def pause(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("unigrpo.runs.watch.console", lambda: out)
    monkeypatch.setattr("unigrpo.runs.watch.time.sleep", pause)
    assert main(["watch", str(tmp_path / "run")]) == 130
    hidden, back = "\x1b[?25l", "\x1b[?25h"
    assert out.file.getvalue().rindex(back) > out.file.getvalue().rindex(hidden)


def test_the_last_answer_is_shown_and_not_obeyed(tmp_path, capsys):
    from unigrpo.training.completions import save_completions

    folder = run_folder(tmp_path / "run", steps=3, finished=False)
    text = "".join(own for name, own in TEXTS.items() if name != "lone surrogate")
    save_completions({"prompt": ["early"], "completion": ["early"]}, folder / "completions", 1)
    save_completions({"prompt": ["3 + 4?", "last?"], "completion": ["7", text]}, folder / "completions", 2)
    (folder / "completions" / "completions_00009.parquet").write_bytes(b"PAR1 being written")
    out = io.StringIO()
    watch([str(folder)], out=PlainConsole(file=out, width=400))
    assert "step 2: last? → " in out.getvalue() and "early" not in out.getvalue()
    assert obeyed(out.getvalue()) == []


def test_the_rate_is_the_seconds_of_the_stages_over_the_steps_since(tmp_path):
    logs = [{"step": 10 * n, "time/rollout": 30.0, "time/update": 10.0, "other": 1e9} for n in range(1, 101)]
    assert seconds_a_step(logs) == 4.0 == seconds_a_step(logs[:1])
    assert seconds_a_step([{"step": 3, "loss": 1.0}]) is None and seconds_a_step([]) is None


@pytest.mark.parametrize("values,bars", [([3.0], "▁"), ([1.0, 1.0], "▁▁"), ([0, 7], "▁█"), (range(8), "▁▂▃▄▅▆▇█")])
def test_a_sparkline_goes_from_the_least_to_the_greatest(values, bars):
    assert sparkline(list(map(float, values))) == bars
    assert len(sparkline([float(own % 7) for own in range(1000)])) == 16


def test_a_tail_reads_each_byte_once(tmp_path, monkeypatch):
    file = tmp_path / "lines"
    file.write_text('{"a": 1}\nnoise\n')
    tail = Tail(file)
    assert tail.look() == [{"a": 1}]
    with file.open("a") as more:
        more.write('{"a": 2}\n{"a"')
    assert tail.look() == [{"a": 1}, {"a": 2}] and tail.place == len('{"a": 1}\nnoise\n{"a": 2}\n')
