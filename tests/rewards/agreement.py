"""How often other graders agree with the table of answers: ``python -m tests.rewards.agreement``.

math-verify alone searches the whole completion; TRL's ``accuracy_reward`` is used where trl is installed. Both are asked for
the cases of ``math_correctness`` with a text as its solution and a score.
"""

from __future__ import annotations

import contextlib
import io
import logging

from .test_graded import CASES, graded


def main() -> None:
    """One line a grader: the table, how often it agrees, and how often it pays for a wrong answer."""
    logging.disable(logging.CRITICAL)
    cases = [
        case for case in CASES if case["kind"] == "math_correctness" and isinstance(case["input"]["solution"], str)
    ]
    cases = [case for case in cases if case["expected"] is not None]
    for name, grade in {"unigrpo": graded, "math-verify alone": math_verify_alone, "trl": trl_accuracy}.items():
        for kind, some in (("firm", [case for case in cases if case["firm"]]), ("all", cases)):
            with contextlib.redirect_stderr(io.StringIO()):
                scores = grade(some)
            agree = sum(score == case["expected"] for score, case in zip(scores, some, strict=True))
            paid = sum(score == 1.0 and not case["expected"] for score, case in zip(scores, some, strict=True))
            print(f"{name}: agrees with {agree} of {len(some)} ({kind}), pays {paid} wrong answers")


def math_verify_alone(cases: list[dict]) -> list[float]:
    """Gold and completion parsed as they are, with math-verify's defaults."""
    from math_verify import parse, verify

    golds = [parse(f"${case['input']['solution']}$") for case in cases]
    return [float(verify(gold, parse(case["input"]["completion"]))) for gold, case in zip(golds, cases, strict=True)]


def trl_accuracy(cases: list[dict]) -> list[float | None]:
    """TRL's reward on the same texts; a solution without marks is put into dollars, as its docstring has it."""
    from trl.rewards import accuracy_reward

    completions = [[{"role": "assistant", "content": case["input"]["completion"]}] for case in cases]
    golds = [
        own if "$" in own or "boxed" in own else f"${own}$" for own in (case["input"]["solution"] for case in cases)
    ]
    return accuracy_reward(completions, golds)


if __name__ == "__main__":
    main()
