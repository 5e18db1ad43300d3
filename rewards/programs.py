"""Does the code of an answer pass its tests?"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ._after_thought import after_thought, last_fenced
from ._arguments import check, is_positive, is_whole, wrong_value
from ._sandbox import Bounds, check_system, run_script, run_test
from .text import completion_text


MAX_PROGRAM = 100_000
"""Characters of a program; a longer one is not run."""

MAX_OUTPUT = 1 << 20
"""Bytes that a program may print for one test."""

MAX_TESTS = 1_000
"""Pairs of input and output of one row."""


@dataclass(frozen=True, slots=True)
class _Row:
    """The program of an answer and what it is to pass: ``test`` with ``entry_point``, or ``pairs``."""

    program: str
    test: str | None = None
    entry_point: str | None = None
    pairs: Sequence[tuple[str, str]] = ()


class CodeTests:
    """1.0 where the program of an answer passes its tests, 0.0 where it does not; range {0.0, 1.0}, or [0, 1] with ``partial``.

    The answer stands behind the last ``</think>``; the program is its last block fenced by three backticks, else all that is
    said, at most 100,000 characters of Python for this interpreter with the standard library. A row is tested by its column
    ``test``, as in HumanEval, or else by ``inputs`` and ``outputs``: the program reads one from its standard input and must
    print the other, where white space at the end of lines and of the whole does not count.

    The program runs in a child process without network that starts no processes, writes no files, and has ``timeout``
    seconds, ``memory`` MiB and 1 MiB of output for a test; what exceeds them fails it. It never sees what is expected of
    it. This is a guard, not a jail: the program reads what this user may read.

    None where a completion is not text, a row has neither kind of test, or its ``test`` is no Python or has no ``check``.

    Args:
        timeout: seconds by the clock for one test, of a ``test`` for all of it; above 0.
        memory: MiB for the program beside what Python itself takes.
        concurrency: programs at a time; None is one a core, at most 8.
        partial: whether the score is the share of pairs that pass. A ``test`` passes or fails.

    Raises:
        RuntimeError: not Linux on x86-64 or AArch64.
        ValueError: an argument is none of these.
    """

    __name__ = "code_tests"

    def __init__(
        self, *, timeout: float = 10.0, memory: int = 512, concurrency: int | None = None, partial: bool = False
    ) -> None:
        check(is_positive(timeout), self.__name__, "timeout", timeout, "a number of seconds above 0")
        check(is_whole(memory, 16), self.__name__, "memory", memory, "a whole number of MiB, at least 16")
        concurrency = min(os.cpu_count() or 1, 8) if concurrency is None else concurrency
        check(
            is_whole(concurrency, 1),
            self.__name__,
            "concurrency",
            concurrency,
            "a whole number of at least 1, or None",
        )
        check(isinstance(partial, bool), self.__name__, "partial", partial, "true or false")
        check_system()
        self.concurrency, self.partial = concurrency, partial
        self.bounds = Bounds(seconds=float(timeout), memory=memory << 20, output=MAX_OUTPUT)

    def __call__(
        self,
        prompts: list,
        completions: list,
        test: list | None = None,
        entry_point: list | None = None,
        inputs: list | None = None,
        outputs: list | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """One score a row.

        ``log_metric`` receives ``code_tests/timeouts``, the rows with a test that was ended for its time.

        Args:
            test: dataset column: Python code. With ``entry_point`` it defines ``check(candidate)``, else it is run as it is and
                calls functions of the answer by their names. These take and return plain values, as copies.
            entry_point: dataset column: name of the function that ``check`` gets.
            inputs, outputs: dataset columns: lists of texts, one of each for a test.

        Raises:
            ValueError: text completions without these columns, or a value that is none of these.
        """
        texts = [completion_text(completion) for completion in completions]
        if test is None and (inputs is None or outputs is None) and any(text is not None for text in texts):
            raise ValueError(
                "code_tests needs a `test` column in the dataset, or `inputs` and `outputs`, and there is none"
            )
        columns = [[None] * len(texts) if own is None else own for own in (test, entry_point, inputs, outputs)]
        rows = [None if text is None else _row(text, *values) for text, *values in zip(texts, *columns, strict=True)]
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            results = list(pool.map(self._score, rows))
        finally:
            pool.shutdown(cancel_futures=True)
        if log_metric is not None:
            log_metric(f"{self.__name__}/timeouts", float(sum(overdue for _, overdue in results)))
        return [score for score, _ in results]

    def _score(self, row: _Row | None) -> tuple[float | None, bool]:
        """The score of a row, and whether a test was ended for its time."""
        if row is None:
            return None, False
        if row.test is not None:
            outcome = run_test(row.program, row.test, row.entry_point, self.bounds)
            return None if outcome.output == "broken" else float(outcome.output == "passed"), outcome.overdue
        passed, overdue = 0, False
        for text, wanted in row.pairs if row.program else ():
            outcome = run_script(row.program, text, self.bounds)
            right = outcome.good and _lines(outcome.output) == _lines(wanted)
            passed, overdue = passed + right, overdue or outcome.overdue
            if not right and not self.partial:
                return 0.0, overdue
        return passed / len(row.pairs), overdue


def _lines(output: str) -> list[str]:
    return [line.rstrip() for line in output.rstrip().splitlines()]


def _row(text: str, test: Any, entry_point: Any, inputs: Any, outputs: Any) -> _Row | None:
    """What is to be done for an answer; None where there is no test."""
    said = after_thought(text)
    program = "" if said is None else last_fenced(said)
    program = program if len(program) <= MAX_PROGRAM else ""
    if test is not None:
        if not isinstance(test, str):
            raise wrong_value("code_tests", "test", test, "Python code as a text")
        if entry_point is not None and not (isinstance(entry_point, str) and entry_point.isidentifier()):
            raise wrong_value("code_tests", "entry_point", entry_point, "the name of a function")
        return _Row(program, test, entry_point)
    if inputs is None or outputs is None:
        return None
    for name, values in (("inputs", inputs), ("outputs", outputs)):
        right = isinstance(values, list | tuple) and 0 < len(values) <= MAX_TESTS
        if not right or not all(isinstance(value, str) for value in values) or len(inputs) != len(outputs):
            cure = f"a list of 1 to {MAX_TESTS} texts, as many `inputs` as `outputs`"
            raise wrong_value("code_tests", name, values, cure)
    return _Row(program, pairs=list(zip(inputs, outputs, strict=True)))
