"""``code_tests``: programs that pass, that fail, that cheat, and that try to take more than they may."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unigrpo.rewards import get_reward


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="seccomp: Linux on x86-64 or AArch64",
)
SUM = "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n"
RIGHT = "def total(values):\n    return sum(values)\n"


def score(program, *, seconds=20.0, memory=256, partial=False, **columns):
    """The score of one program, and the rows that were ended for their time."""
    reward, logged = get_reward("code_tests", timeout=seconds, memory=memory, partial=partial), {}
    columns = {name: [value] for name, value in columns.items()}
    (own,) = reward(["p"], [program], log_metric=logged.__setitem__, **columns)
    return own, logged["code_tests/timeouts"]


ALL = "class All(int):\n    __eq__ = lambda *_: True\n    __hash__ = int.__hash__\n"
WRITES = "import os\nfor fd in range(20):\n    try: os.write(fd, b'passed')\n    except OSError: pass\nos._exit(0)"
LOOKS = "import gc, sys\nseen = [o for o in gc.get_objects() if 'candidate' in str(o)[:99]]\n"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (RIGHT, 1),
        (f"<think>\n```python\nno\n```</think>So:\n```python\n{RIGHT}```\nDone.", 1),
        (f"```\n{RIGHT}\n```\n```\nno\n```", 0),
        (f"<think>{RIGHT}", 0),
        (RIGHT + "if __name__ == '__main__':\n    raise SystemExit", 1),
        ("def total(values): return 3", 0),
        ("total = 5", 0),
        ("no program", 0),
        ("import sys; sys.exit(0)", 0),
        ("import os; os._exit(0)", 0),
        ("def total(values): __import__('os')._exit(0)", 0),
        (WRITES, 0),
        (ALL + "def total(values): return All(9)", 0),
        ("class All:\n    __eq__ = lambda *_: True\ndef total(values): return All()", 0),
        ("import builtins\nbuiltins.AssertionError = ValueError\ndef check(f): pass\ndef total(values): return 9", 0),
        (LOOKS + "def total(v): return seen[0]", 0),
    ],
)
def test_a_test_is_passed_by_right_programs_alone(program, expected):
    assert score(program, test=SUM, entry_point="total") == (expected, 0)


@pytest.mark.smoke
def test_values_come_back_as_they_went():
    values = (
        "[None, True, 1, -2.5, inf, 'é\\ud800', b'\\0', (1, (2,)), {1, 2}, frozenset('a'), {(1, 2): [{}]}, 3j, [[]]]"
    )
    test = f"inf = float('inf')\nfor value in {values}:\n    again = same(value, other=value)\n"
    test += "    assert again == (value, value)\n    assert type(again[0]) is type(value)"
    assert score("def same(value, *, other): return value, other", test=test)[0] == 1
    raising = (
        "try:\n    f(0)\nexcept ZeroDivisionError as error:\n    assert 'zero' in str(error)\nelse:\n    assert False"
    )
    assert score("def f(x): return 1 / x", test=raising)[0] == 1
    assert score("def f(x): return x", test=raising)[0] == 0
    assert score("def f(n):\n    yield from range(n)", test="assert list(f(3)) == [0, 1, 2]")[0] == 1


@pytest.mark.parametrize("test", ["def (", "x = 1 +"])
def test_a_row_without_a_usable_test_does_not_count(test):
    assert score(RIGHT, test=test)[0] is None
    assert score(RIGHT, test="x = 1", entry_point="total")[0] is None
    assert score(RIGHT, test=None)[0] is None


def test_pairs_of_input_and_output():
    pairs = {"inputs": ["1\n2", "5\n5\n"], "outputs": ["3\n", "10"]}
    adds = "print(int(input()) + int(input()))"
    assert score(adds, **pairs)[0] == 1
    assert score(f"{adds}\nprint()", **pairs)[0] == 1
    assert score("print(3)", **pairs)[0] == 0
    assert score("print(3)", partial=True, **pairs)[0] == 0.5
    assert score(f"{adds}\nraise SystemExit(1)", **pairs)[0] == 0
    assert score("import sys\nprint(sum(map(int, sys.stdin)))\nsys.exit()", **pairs)[0] == 1


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time\ntime.sleep(1000)",
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass",
        "import os\nos.close(1)\nwhile True: pass",
    ],
)
def test_a_hang_is_ended(program):
    started = time.monotonic()
    assert score(program, seconds=0.3, inputs=["1"], outputs=["1"]) == (0, 1)
    assert score(program, seconds=0.3, test="f()") == (0, 1)
    assert time.monotonic() - started < 30


REFUSED = (
    "import os, sys\ntry:\n    {}\nexcept (OSError, MemoryError, RuntimeError, ValueError):\n    print('refused')"
)


@pytest.mark.parametrize(
    "action",
    [
        "[os.fork() for _ in iter(int, 1)]",
        "__import__('subprocess').run(['true'])",
        "os.execv(sys.executable, ['python'])",
        "while True: __import__('threading').Thread(target=__import__('time').sleep, args=(99,), daemon=True).start()",
        "bytearray(1 << 30)",
        "[bytearray(1 << 20) for _ in iter(int, 1)].append(0)",
        "__import__('socket').socket()",
        "__import__('socket').create_connection(('127.0.0.1', PORT), 1)",
        "open('/tmp/x', 'w')",
        "open(TARGET, 'a')",
        "os.remove(TARGET)",
        "os.rename(TARGET, TARGET + '.old')",
        "os.truncate(TARGET, 0)",
        "os.chmod(TARGET, 0)",
        "os.kill(os.getppid(), 9)",
        "__import__('resource').setrlimit(0, (-1, -1))",
        "__import__('ctypes').CDLL(None).ptrace(16, os.getppid(), 0, 0) and sys.exit(print('refused'))",
    ],
)
def test_what_a_program_may_not_do_is_refused(action, tmp_path):
    target = tmp_path / "kept"
    target.write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        known = f"TARGET, PORT = {str(target)!r}, {server.getsockname()[1]}\n"
        program = known + REFUSED.format(action)
        assert score(program, inputs=[""], outputs=["refused"]) == (1, 0)
    assert target.read_text() == "kept" and os.listdir(tmp_path) == ["kept"]


def test_endless_output_is_ended():
    assert score("while True: print('x' * 1000)", inputs=["1"], outputs=["x"]) == (0, 0)
    assert score("def f(): return 'x' * 3_000_000", test="assert len(f()) == 3_000_000") == (0, 0)


def test_a_program_sees_neither_the_environment_nor_other_packages(monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    program = (
        "import os\ntry:\n    import torch\nexcept ImportError:\n    print(os.environ.get('SECRET'), os.getcwd())"
    )
    assert score(program, inputs=[""], outputs=["None /"])[0] == 1


def test_rows_are_scored_in_their_order_and_leave_nothing_behind():
    before = len(os.listdir("/proc/self/fd"))
    reward = get_reward("code_tests", concurrency=4)
    programs = [f"print({number})" for number in range(8)]
    scores = reward(["p"] * 8, programs, inputs=[[""]] * 8, outputs=[[str(n if n % 3 else -1)] for n in range(8)])
    assert scores == [float(n % 3 > 0) for n in range(8)]
    assert len(os.listdir("/proc/self/fd")) <= before
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = [own.read_text() for child in children if (own := Path(f"/proc/{child}/cmdline")).exists()]
    assert not any("_guard.py" in own for own in commands)


@pytest.mark.processes
def test_a_program_dies_with_the_run():
    code = "from unigrpo.rewards import get_reward\nget_reward('code_tests', timeout=300)(['p'], ['import time; time.sleep(300)'], "
    run = subprocess.Popen([sys.executable, "-c", code + "inputs=[['']], outputs=[['']])"])
    deadline, children = time.monotonic() + 120, []
    while not any("_guard.py" in command_of(child) for child in children):
        assert time.monotonic() < deadline and run.poll() is None
        children = [
            own for file in Path(f"/proc/{run.pid}/task").glob("*/children") for own in file.read_text().split()
        ]
        time.sleep(0.01)
    while not guarded(children[0]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.kill()
    run.wait()
    while "_guard.py" in command_of(children[0]):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def command_of(process: str) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def guarded(process: str) -> bool:
    """Whether the kernel looks at each system call of the process: its last preparation."""
    return "Seccomp:\t2" in Path(f"/proc/{process}/status").read_text()
