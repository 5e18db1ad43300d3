"""The life of the worker: lazy, restarted, bounded, not shared with forks, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unigrpo.rewards import math_correctness
from unigrpo.rewards._math_process import WORKER, MathProcess, Verdict

from ..support import ROOT


PARENT = """
import os, sys, threading, time
from unigrpo.rewards import math_correctness
from unigrpo.rewards._math_process import WORKER
def score(answer, **kwargs):
    return math_correctness(["p"], [f"\\\\boxed{{{answer}}}"], ["$2x$"], **kwargs)[0]
assert WORKER.pid is None
assert score("x+x") == 1.0
"""


@pytest.fixture
def worker():
    process = MathProcess()
    yield process
    process.stop()


@pytest.fixture
def started(worker):
    worker.compare("2x", "x", 60.0)
    return worker


def state(pid):
    """State letter of a process, Z for one that is dead and not yet reaped, None for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def seconds_of(pid):
    """Seconds of a processor that it has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_gone(pid):
    deadline = time.monotonic() + 30
    while state(pid) not in (None, "Z"):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def run_parent(code):
    """A Python process that uses the reward; it prints the worker's pid on a line of its own."""
    return subprocess.Popen([sys.executable, "-c", PARENT + code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.smoke
def test_started_when_needed_and_kept(worker):
    assert worker.pid is None
    pids = set()
    for gold, prediction, verdict in (
        ("2x", "x+x", Verdict.EQUAL),
        ("2x", "x", Verdict.DIFFERENT),
        (")(", "x", Verdict.GOLD_UNREADABLE),
        ("2x", "", Verdict.DIFFERENT),
    ):
        assert worker.compare(gold, prediction, 60.0) is verdict
        pids.add(worker.pid)
    assert len(pids) == 1


def test_killed_and_reaped_after_a_timeout_and_replaced(started):
    pid = started.pid
    assert started.compare("5", "9^{9^{9^9}}", 0.3) is Verdict.EXHAUSTED
    assert started.pid is None and state(pid) is None
    assert started.compare("2x", "x+x", 60.0) is Verdict.EQUAL


def test_a_worker_that_does_not_read_is_left_and_says_nothing_about_the_prediction(started):
    pid, start = started.pid, time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    assert started.compare("2x", "x+" * 200_000, 0.3) is Verdict.GOLD_EXHAUSTED
    assert time.monotonic() - start < 30, "it never reads"
    assert state(pid) is None
    # More than a pipe holds, and read by a worker that does.
    assert started.compare("2x", "x+x" + " " * 200_000, 10.0) is Verdict.EQUAL
    os.kill(started.pid, signal.SIGSTOP)
    assert started.compare("2x", "x+x", 0.2) is Verdict.GOLD_EXHAUSTED


def test_replaced_after_it_died_between_two_comparisons(started):
    os.kill(started.pid, signal.SIGKILL)
    wait_until_gone(started.pid)
    assert started.compare("2x", "x+x", 60.0) is Verdict.EQUAL


def test_an_interrupted_exchange_leaves_no_reply_behind(started, monkeypatch):
    pid = started.pid
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(started, "_receive", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        started.compare("2x", "x+x", 60.0)
    assert state(pid) is None
    assert started.compare("2x", "x", 60.0) is Verdict.DIFFERENT


def test_nothing_is_left_after_a_stop(started):
    pid = started.pid
    started.stop()
    assert started.pid is None and state(pid) is None, "killed, and reaped"
    started.stop()


def test_ctrl_c_reaches_only_the_parent(started):
    pid = started.pid
    os.kill(pid, signal.SIGINT)
    assert started.compare("2x", "x+x", 60.0) is Verdict.EQUAL and started.pid == pid


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on address space is Linux's")
def test_its_memory_is_bounded(started):
    folder = Path(f"/proc/{started.pid}")
    (line,) = (line for line in (folder / "limits").read_text().splitlines() if "address space" in line)
    used = int((folder / "statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    assert 1 * 1024**3 < int(line.split()[3]) - used < 2.1 * 1024**3


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on address space is Linux's")
def test_an_expression_that_wants_more_memory_says_nothing_and_costs_no_worker(worker, tmp_path, monkeypatch):
    (tmp_path / "greedy.py").write_text("hoard = lambda: len(bytearray(8 * 1024**3))")
    (tmp_path / "math_verify.py").write_text(
        "import greedy, types\n"
        "grader = types.SimpleNamespace(sympy_numeric_eq=None)\n"
        "LatexExtractionConfig = dict\n"
        "parse = lambda text, *_, **__: [greedy.hoard() if 'hoard' in text else 1]\n"
        "verify = lambda *_, **__: True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert worker.compare("1", "1", 60.0) is Verdict.EQUAL
    pid = worker.pid
    assert worker.compare("1", "hoard", 20.0) is Verdict.DIFFERENT
    assert worker.compare("1", "1", 60.0) is Verdict.EQUAL and worker.pid == pid


@pytest.mark.parametrize("interpreter", ["/bin/false", "/no/such/python", ""])
def test_a_worker_that_does_not_start_is_an_error_with_the_cure(worker, monkeypatch, interpreter):
    monkeypatch.setattr(sys, "executable", interpreter)
    with pytest.raises(RuntimeError, match="pip install"):
        worker.compare("2x", "x+x", 60.0)
    assert worker.pid is None


def test_a_missing_math_verify_is_an_error_with_its_name(worker, monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('half installed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match=r"half installed.*math-verify"):
        worker.compare("2x", "x+x", 60.0)


def test_modules_in_the_working_directory_are_not_picked_up(worker, monkeypatch, tmp_path):
    (tmp_path / "sympy.py").write_text("raise ImportError('a stranger')\n")
    monkeypatch.chdir(tmp_path)
    assert worker.compare("2x", "x+x", 60.0) is Verdict.EQUAL


def test_a_fork_starts_its_own():
    assert math_correctness(["p"], ["\\boxed{x+x}"], ["$2x$"]) == [1.0]
    pid = WORKER.pid
    child = os.fork()
    if child == 0:
        right = WORKER.pid is None and math_correctness(["p"], ["\\boxed{x+x}"], ["$2x$"]) == [1.0]
        own = WORKER.pid not in (None, pid)
        WORKER.stop()
        os._exit(0 if right and own else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert math_correctness(["p"], ["\\boxed{x}"], ["$2x$"]) == [0.0]
    assert WORKER.pid == pid


@pytest.mark.processes
def test_gone_after_a_normal_exit():
    parent = run_parent("print(WORKER.pid)")
    output, _ = parent.communicate(timeout=60)
    assert parent.returncode == 0 and state(int(output)) in (None, "Z")


def gone_after_kill(parent, pid):
    parent.kill()
    parent.wait()
    wait_until_gone(pid)
    parent.stdout.close()


@pytest.mark.processes
def test_gone_after_the_parent_was_killed_while_it_was_idle():
    parent = run_parent("print(WORKER.pid, flush=True); time.sleep(60)")
    pid = int(parent.stdout.readline())
    assert state(pid) not in (None, "Z")
    gone_after_kill(parent, pid)


@pytest.mark.processes
def test_gone_after_the_parent_was_killed_while_it_started(tmp_path):
    (tmp_path / "math_verify.py").write_text("import time; time.sleep(60)")
    code = f"""
import unigrpo.rewards._math_process as own, sys, threading, time
sys.path.insert(0, {str(tmp_path)!r})
own.START_SECONDS = 1.0
threading.Thread(target=own.WORKER.compare, args=("1", "1", 1.0), daemon=True).start()
while own.WORKER.pid is None:
    time.sleep(0.01)
print(own.WORKER.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    gone_after_kill(parent, int(parent.stdout.readline()))


@pytest.mark.processes
def test_gone_after_the_parent_was_killed_although_a_fork_of_it_lives():
    parent = run_parent("child = os.fork()\nif child: print(WORKER.pid, child, flush=True)\ntime.sleep(60)")
    pid, fork = map(int, parent.stdout.readline().split())
    gone_after_kill(parent, pid)
    assert state(fork) not in (None, "Z")
    os.kill(fork, signal.SIGKILL)


@pytest.mark.processes
def test_gone_after_the_parent_was_killed_while_it_was_busy():
    parent = run_parent("print(WORKER.pid, flush=True); score('9^{9^{9^9}}', timeout=5)")
    pid = int(parent.stdout.readline())
    worked, deadline = seconds_of(pid), time.monotonic() + 30
    while seconds_of(pid) < worked + 0.2:
        assert time.monotonic() < deadline and state(pid) not in (None, "Z"), "it was idle"
        time.sleep(0.02)
    gone_after_kill(parent, pid)
