"""Is an answer to a task of reasoning-gym right?"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._after_thought import after_thought, tagged_or_all
from ._arguments import check, column, is_positive, is_whole, wrong_value
from ._sandbox import check_system
from .text import completion_text


MAX_ANSWER = 20_000
"""Characters of an answer; a longer one scores 0.0."""

START_SECONDS = 120.0
"""How long the scoring process may take to import reasoning-gym."""

_SCRIPT = Path(__file__).with_name("_gym_worker.py")
_NUMBERS = {"seed": 0, "size": 1, "index": 0, "crc32": 0}


class ReasoningGym:
    """What the task's own scorer in reasoning-gym gives a completion's answer; range [0, 1].

    The answer stands behind the last ``</think>``; it is the content of the last ``<answer></answer>``, else all that is
    said. No answer, one of more than 20,000 characters, and one whose scoring exceeds a bound score 0.0. Some scorers give
    a wrong answer 0.01 or part of the points.

    Rows are those of the dataset ``reasoning_gym:TASK``: the question is made anew from their column, by the version of
    reasoning-gym that is installed. Some scorers evaluate an answer as Python, so each is scored in a child process of its
    own, with the bounds of ``code_tests``. None where a completion is not text or its column is None.

    Args:
        timeout: seconds by the clock for one answer, above 0.
        memory: MiB for scoring one, beside what reasoning-gym itself takes.

    Raises:
        ImportError: the package reasoning-gym is not installed.
        RuntimeError: not Linux on x86-64 or AArch64.
        ValueError: an argument is none of these.
    """

    __name__ = "reasoning_gym"

    def __init__(self, *, timeout: float = 5.0, memory: int = 512) -> None:
        check(is_positive(timeout), self.__name__, "timeout", timeout, "a number of seconds above 0")
        check(is_whole(memory, 16), self.__name__, "memory", memory, "a whole number of MiB, at least 16")
        check_system()
        if importlib.util.find_spec("reasoning_gym") is None:
            raise ImportError(
                "reasoning_gym needs the package reasoning-gym, which is not installed: `pip install "
                '"unigrpo[reasoning-gym]"`'
            )
        self.timeout, self.memory = float(timeout), memory << 20

    def __call__(
        self,
        prompts: list,
        completions: list,
        reasoning_gym: list | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """One score a row. ``log_metric`` receives ``reasoning_gym/timeouts``, the answers whose scoring was ended.

        Args:
            reasoning_gym: dataset column: where the question is from, a JSON text with ``task``, ``seed``, ``size``, ``index`` and
                ``crc32`` of the question.

        Raises:
            ValueError: text completions without this column, a value that is none of these, or a question that the installed
                reasoning-gym makes otherwise.
            RuntimeError: reasoning-gym does not run in this environment, or does not know a task.
        """
        texts = [completion_text(completion) for completion in completions]
        sources = column(self.__name__, "reasoning_gym", reasoning_gym, texts)
        scores: list[float | None] = [
            None if text is None or own is None else 0.0 for text, own in zip(texts, sources, strict=True)
        ]
        rows = {}
        for place, score in enumerate(scores):
            if score is not None:
                said, source = after_thought(texts[place]), _source(sources[place])
                answer = None if said is None else tagged_or_all(said)
                if answer and len(answer) <= MAX_ANSWER:
                    rows[place] = (source, answer)
        results = self._asked(list(rows.values())) if rows else []
        for place, result in zip(rows, results, strict=True):
            if result == "changed":
                raise ValueError(
                    f"reasoning_gym: the installed reasoning-gym makes another question of {sources[place]}: make the "
                    "dataset anew, or install the version that made it"
                )
            scores[place] = 0.0 if isinstance(result, str) or result != result else min(max(result, 0.0), 1.0)
        if log_metric is not None:
            log_metric(f"{self.__name__}/timeouts", float(results.count("overdue")))
        return scores

    def _asked(self, rows: list[tuple[dict, str]]) -> list[float | str]:
        """Scores from a process that is started for them."""
        request = {"seconds": self.timeout, "memory": self.memory, "rows": rows}
        bound = START_SECONDS + len(rows) * (self.timeout + 1)
        done = subprocess.run(
            # -P keeps this package's folder, which has a math.py, off the worker's path.
            [sys.executable, "-P", str(_SCRIPT)],
            input=json.dumps(request),
            # With the seed that the questions were made with, which decides about some.
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            timeout=bound,
            check=False,
        )
        try:
            reply = json.loads(done.stdout)
        except ValueError:
            reply = {"error": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
        if "error" in reply:
            raise RuntimeError(f"reasoning_gym: the scoring process of reasoning-gym failed ({reply['error']})")
        return reply["scores"]


def _source(given: Any) -> dict[str, Any]:
    try:
        source = json.loads(given)
        right = isinstance(source["task"], str) and all(
            is_whole(source[key], least) for key, least in _NUMBERS.items()
        )
    except (ValueError, TypeError, KeyError):
        right = False
    if not right or source["index"] >= source["size"]:
        cure = "what the dataset `reasoning_gym:TASK` writes there"
        raise wrong_value("reasoning_gym", "reasoning_gym", given, cure)
    return source
