"""The process in which code of an answer runs. Run by path; imports nothing of this package.

``_guard.py MODE SPEC PARENT [IN OUT]``: SPEC, IN and OUT are file descriptors, PARENT is the process that must be there.
SPEC holds JSON with ``seconds``, ``memory`` and the code. Modes:

* ``script``: runs ``program`` as a script; standard input and output are its own.
* ``answer``: runs ``program`` as a module, then answers calls of its functions, one JSON line each from IN to OUT.
* ``test``: runs ``test``, whose unknown names are functions of the answer behind OUT and IN, then ``check`` of the function
  ``entry_point`` if there is one, and writes ``passed``, ``failed`` or ``broken`` to standard output.

What is expected never reaches the process of the answer, and what comes back from there are plain values: an answer can
neither read the tests, nor end them early, nor return an object that equals everything.
"""

from __future__ import annotations

import ast
import builtins
import ctypes
import errno
import json
import math
import os
import platform
import resource
import signal
import struct
import sys
import types
from collections.abc import Iterable


UNGUARDED = 77
"""Exit status of a process that could not be guarded; it has run nothing."""

LINE = 1 << 20
"""Bytes of one call or its value."""

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of a machine in the tables below, and the kernel's name for it."""

# fmt: off
ALLOWED = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "lseek": (8, 62),
    "close": (3, 57), "fstat": (5, 80), "newfstatat": (262, 79), "stat": (4, None), "lstat": (6, None), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "getcwd": (79, 17), "getdents64": (217, 61),
    "readlink": (89, None), "readlinkat": (267, 78), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214), "membarrier": (324, 283), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "uname": (63, 160), "sysinfo": (99, 179), "getrusage": (98, 165),
    "times": (100, 153), "time": (201, None), "gettimeofday": (96, 169), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72), "futex": (202, 98), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "set_robust_list": (273, 99), "set_tid_address": (218, 96), "rseq": (334, 293),
    "getrandom": (318, 278), "exit": (60, 93), "exit_group": (231, 94),
}
# fmt: on
"""System calls that are let through, with their numbers on x86-64 and AArch64; all others fail as not permitted.

Computing, reading files, sleeping and threads: no network, no process, no signal to another, no file written.
"""

ANSWERED = {"clone3": (435, 435, errno.ENOSYS), "ioctl": (16, 29, errno.ENOTTY)}
"""Calls that are refused with another error: then the C library takes ``clone``, and a file is no terminal."""

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_THREAD = 0x10000

CHECKED = {
    "open": ((2, None), 1, _ANY_BIT, _WRITING, _ERROR | errno.EACCES, _ALLOW),
    "openat": ((257, 56), 2, _ANY_BIT, _WRITING, _ERROR | errno.EACCES, _ALLOW),
    "clone": ((56, 220), 0, _ANY_BIT, _THREAD, _ALLOW, _ERROR | errno.EPERM),
    "fcntl": ((72, 25), 1, _GREATER, 4, _ERROR | errno.EPERM, _ALLOW),
}
"""Calls that depend on an argument: their numbers, which argument, the test, what it is compared with, yes, no.

Files are opened for reading, ``clone`` makes threads only, ``fcntl`` reads and sets flags.
"""


def main() -> None:
    """One process, one piece of code."""
    mode, spec, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with os.fdopen(spec) as file:
        spec = json.load(file)
    channel = _silenced() if mode != "script" else -1
    pipes = [os.fdopen(int(fd), how) for fd, how in zip(sys.argv[4:], ("rb", "wb"), strict=False)]
    guard(spec["seconds"], spec["memory"], parent)
    sys.argv = ["answer.py"]
    if mode == "script":
        _module("__main__", spec["program"])
    elif mode == "answer":
        _answer_calls(_module("answer", spec["program"]), *pipes)
    else:
        os.write(channel, _verdict(spec, *pipes).encode())


def _silenced() -> int:
    """A way to the real standard output; what is printed from now on goes nowhere."""
    channel, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    return channel


def guard(seconds: float, memory: int, parent: int) -> None:
    """Bounds this process for good: CPU time, memory and what it may ask of the kernel. It dies with its parent."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    cpu = math.ceil(seconds) + 1
    limits = {
        resource.RLIMIT_AS: used + memory,
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    set_death_signal, set_no_new_privileges, set_seccomp, filtered = 1, 38, 22, 2
    failed = libc.prctl(set_death_signal, signal.SIGKILL, 0, 0, 0) or libc.prctl(set_no_new_privileges, 1, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    program = _filter()
    code = ctypes.create_string_buffer(b"".join(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    if failed or libc.prctl(set_seccomp, filtered, header, 0, 0):
        os._exit(UNGUARDED)


def _filter() -> list[bytes]:
    """The kernel's program that looks at each system call, its instructions."""
    place, architecture = ARCHITECTURES[platform.machine()]
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    for numbers in ALLOWED.values():
        if numbers[place] is not None:
            steps += [(_EQUAL, 0, 1, numbers[place]), (_RETURN, 0, 0, _ALLOW)]
    for *numbers, error in ANSWERED.values():
        steps += [(_EQUAL, 0, 1, numbers[place]), (_RETURN, 0, 0, _ERROR | error)]
    for numbers, argument, test, value, yes, no in CHECKED.values():
        if numbers[place] is not None:
            steps += [(_EQUAL, 0, 4, numbers[place]), (_LOAD, 0, 0, 16 + 8 * argument), (test, 0, 1, value)]
            steps += [(_RETURN, 0, 0, yes), (_RETURN, 0, 0, no)]
    steps.append((_RETURN, 0, 0, _ERROR | errno.EPERM))
    return [struct.pack("HBBI", *step) for step in steps]


def _module(name: str, program: str) -> types.ModuleType:
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(program, "answer.py", "exec"), module.__dict__)
    return module


# ---- calls from the process of the tests to the process of the answer ----


def _answer_calls(module: types.ModuleType, requests, replies) -> None:
    """Calls functions of the answer until there is nobody to ask."""
    for line in requests:
        try:
            request = json.loads(line)
            function = vars(module)[request["name"]]
            value = function(*_read(request["args"]), **_read(request["kwargs"]))
            reply = json.dumps({"value": _written(value)})
        except Exception as error:
            reply = json.dumps({"error": type(error).__name__, "text": str(error)[:1000]})
        replies.write(reply.encode() + b"\n")
        replies.flush()


class _Remote:
    """A function of the answer, as the tests see it."""

    def __init__(self, name: str, replies, requests) -> None:
        self.name, self._replies, self._requests = name, replies, requests

    def __call__(self, *args, **kwargs):
        request = {"name": self.name, "args": _written(args), "kwargs": _written(kwargs)}
        self._requests.write(json.dumps(request).encode() + b"\n")
        self._requests.flush()
        reply = json.loads(self._replies.readline(LINE))
        if "error" in reply:
            raise _error(reply["error"], reply.get("text"))
        return _read(reply["value"])


def _error(name, text) -> Exception:
    """An exception of Python's own with this name, where there is one."""
    kind = getattr(builtins, str(name), None)
    try:
        return kind(text) if issubclass(kind, Exception) else RuntimeError(text)
    except TypeError:
        return RuntimeError(text)


def _verdict(spec: dict, replies, requests) -> str:
    try:
        tree = ast.parse(spec["test"])
        code = compile(tree, "test.py", "exec")
    except Exception:
        return "broken"
    loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {spec["entry_point"] or "check"}
    names = {"__name__": "test"} | {
        name: _Remote(name, replies, requests) for name in loaded if not hasattr(builtins, name)
    }
    try:
        exec(code, names)
        if spec["entry_point"] is not None:
            if isinstance(names.get("check"), _Remote | None):
                return "broken"
            names["check"](_Remote(spec["entry_point"], replies, requests))
    except BaseException:
        return "failed"
    return "passed"


_KINDS = {"tuple": tuple, "set": set, "frozenset": frozenset, "list": list}


def _written(value):
    """A plain value as JSON; of anything that can be gone through the list of its items."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, dict):
        return ["dict", *([_written(key), _written(item)] for key, item in value.items())]
    if not isinstance(value, Iterable):
        raise TypeError(f"a {type(value).__name__} is no plain value")
    kind = next((name for name, kind in _KINDS.items() if isinstance(value, kind)), "list")
    return [kind, *map(_written, value)]


def _read(written):
    """The value that ``_written`` wrote, of Python's own types."""
    if not isinstance(written, list):
        return written
    kind, *items = written
    if kind == "bytes":
        return bytes.fromhex(items[0])
    if kind == "complex":
        return complex(*items)
    if kind == "dict":
        return {_read(key): _read(item) for key, item in items}
    return _KINDS[kind](map(_read, items))


if __name__ == "__main__":
    main()
