"""The process that compares expressions with math-verify. Run by path; imports nothing of this package.

Requests and replies are JSON lines: after ``{"ready": true}`` or ``{"error": text}``, each request
``{"gold": latex, "prediction": latex, "seconds": bound}`` is answered by ``{"gold": bool}`` (can it be parsed) and,
if it can, ``{"equal": bool}``. The process ends when its input closes, and when a request outlives its bound; the first
argument bounds the start, in seconds.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from functools import lru_cache


MEMORY = 2 * 1024**3
"""Address space in bytes that comparisons may use on top of what the imports take."""

GRACE = 1.0
"""Seconds past its bound after which a comparison ends the process. Normally the parent has ended it by then."""


def main() -> int:
    """Serves requests until the input closes; exit status 1 where math-verify does not work."""
    _set_alarm(float(sys.argv[1]) + GRACE)  # Of the start: imports may hang, on a file system that does.
    send = _take_over_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which may want to finish its step.
    logging.disable(logging.CRITICAL)
    try:
        parse, verify = _load()
        _limit_memory()
        _set_alarm(0.0)
    except BaseException as error:
        send({"error": f"{type(error).__name__}: {error}"})
        return 1
    send({"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _set_alarm(request["seconds"] + GRACE)
        _answer(request, parse, verify, send)
        _set_alarm(0.0)
    return 0


def _take_over_stdout():
    """A function that writes a JSON line to the real stdout; whatever libraries print goes nowhere."""
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return lambda message: channel.write(json.dumps(message).encode() + b"\n")


def _load():
    """``parse(expression) -> list`` and ``verify(gold, prediction) -> bool``, warmed up: the first parse is slow."""
    from math_verify import LatexExtractionConfig, grader, parse, verify

    # Numbers are math-verify's to read and ours to compare: it rounds to six decimal places, so that 1.6e-19 would be 0.
    if not hasattr(grader, "sympy_numeric_eq"):
        raise RuntimeError("math-verify has no sympy_numeric_eq to replace")
    grader.sympy_numeric_eq = _same_value
    config = (LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False),)

    def parse_expression(expression: str) -> list:
        # The boxed form is read whole; anything less would let math-verify search the text for some number.
        return parse(f"\\boxed{{{expression}}}", config, parsing_timeout=None)

    def verify_parsed(gold: list, prediction: list) -> bool:
        prediction = [_as_set(item) if any(_is_set(own) for own in gold) else item for item in prediction]
        return bool(verify(gold, prediction, allow_set_relation_comp=True, timeout_seconds=None))

    if not verify_parsed(parse_expression("x^2+2x+1"), parse_expression("(x+1)^2")):
        raise RuntimeError("math-verify does not find that x^2+2x+1 equals (x+1)^2")
    return lru_cache(maxsize=64)(parse_expression), verify_parsed


def _is_set(item) -> bool:
    from sympy import FiniteSet, Set

    return isinstance(item, Set) and not isinstance(item, FiniteSet)


def _as_set(item):
    """What ``x < 1 or x > 4`` says, read as a list of relations, as the set of all x that it allows."""
    from sympy import FiniteSet, Union
    from sympy.core.relational import Relational

    if isinstance(item, FiniteSet) and len(item) and all(isinstance(own, Relational) for own in item):
        return Union(*(own.as_set() for own in item))
    return item


def _same_value(left, right, *_) -> bool:
    """Equality of two closed expressions, or matrices of them: to nine digits where one has a decimal, else to forty."""
    from sympy import Float, N, nsimplify

    if hasattr(left, "shape") or hasattr(right, "shape"):
        if getattr(left, "shape", None) != getattr(right, "shape", None):
            return False
        left, right = left.doit(), right.doit()
        return all(
            _same_value(a, b) or (a - b).simplify() == 0 for a, b in zip(left.flat(), right.flat(), strict=True)
        )
    left, right = left.doit(), right.doit()
    if left == right:
        return True
    if left.free_symbols or right.free_symbols:
        return (nsimplify(left, rational=True) - nsimplify(right, rational=True)).expand() == 0
    tolerance = 1e-9 if left.has(Float) or right.has(Float) else 1e-40
    left, right = N(left, 60), N(right, 60)
    if not (left.is_finite and right.is_finite):
        return False
    return bool(abs(left - right) <= tolerance * max(abs(left), abs(right)))


def _answer(request: dict, parse, verify, send) -> None:
    gold = _guarded(parse, request["gold"]) or []
    # A parse that fails leaves only the text, and equality of texts is no proof that the gold is mathematics.
    known = any(not isinstance(item, str) for item in gold)
    send({"gold": known})
    if known:
        prediction = _guarded(parse, request["prediction"]) if request["prediction"] else None
        send({"equal": bool(prediction and _guarded(verify, gold, prediction))})


def _guarded(function, *arguments):
    """The result, or None for any error: running out of stack or memory says that there is no answer."""
    try:
        return function(*arguments)
    except Exception:
        return None


def _limit_memory() -> None:
    """Bounds the address space, where the system can: Linux has both the count and the limit."""
    try:
        import resource

        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        bound = used + MEMORY if hard == resource.RLIM_INFINITY else min(used + MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    except (ImportError, OSError, ValueError):
        return


def _set_alarm(seconds: float) -> None:
    """The kernel ends the process after that time; 0 calls it off.

    The default action needs no Python code to run, so it works inside a big-integer operation that holds the
    interpreter, and after the parent is gone.
    """
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    sys.exit(main())
