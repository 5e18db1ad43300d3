"""Countdown with small numbers: write an expression that uses every number once and makes the target.

A problem is two or three numbers from 1 to 9 and a target that they make with ``+``, ``-`` and ``*`` in the order in which
they are listed; any other right expression is as good. ``making/README.md`` says how ``builtin:countdown`` is made.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import product
from typing import Any


SPLITS = ("train", "test")

NUMBERS = range(1, 10)
COUNTS = (2, 3)
"""How many numbers a problem has."""

TARGETS = range(1, 100)

PROMPT = "Make {target} from {numbers}."
WORDS = ("Make", "from", *map(str, range(TARGETS.start, TARGETS.stop)))
"""Words and numbers of the prompt, one token each."""

SAMPLING = {"max_completion_length": 12, "steps": 12, "block_length": 12}
"""One token a step; the steps that a finished answer does not need are not run."""

HELD_OUT_ONE_IN = 8

WRONG_TARGET, WRONG_NUMBER = 0.5, 0.1
"""Chances that the teacher makes another target of the numbers, and that it uses other numbers."""

_OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
_TOKEN = re.compile(r"[0-9]{1,9}|[-+*/()]")
_LONGEST = 100

Problem = tuple[tuple[int, ...], int]


def pairs(split: str, count: int) -> list[Problem]:
    """All problems ``(numbers, target)`` of a split with ``count`` numbers, in increasing order.

    Raises:
        ValueError: ``split`` is not one of ``SPLITS``.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose one of {SPLITS}")
    orders = product(NUMBERS, repeat=count)
    every = ((numbers, target) for numbers in orders for target in sorted(expressions(numbers)))
    return [problem for problem in every if split_of(*problem) == split]


def split_of(numbers: tuple[int, ...], target: int) -> str:
    """The split that owns a problem; the order of its numbers does not matter."""
    name = f"{sorted(numbers)} {target}"
    return "test" if zlib.crc32(name.encode()) % HELD_OUT_ONE_IN == 0 else "train"


def problems(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a split, a function of the arguments alone. Two numbers and three take turns.

    Args:
        split: ``"train"`` or ``"test"``; a problem of one never occurs in the other.
        n: number of rows; None = twice the number of problems with three numbers. Problems repeat in another order.
        seed: decides the order.

    Returns:
        dictionaries with ``prompt`` (str), ``numbers`` (list of int), ``target`` (int) and ``solution``, one right
        expression of several.
    """
    rng = random.Random(f"countdown/{split}/{seed}")
    turns = [_shuffled_forever(pairs(split, count), rng) for count in COUNTS]
    total = len(turns) * len(pairs(split, max(COUNTS))) if n is None else n
    return [_row(next(turns[place % len(turns)])) for place in range(total)]


@cache
def expressions(numbers: tuple[int, ...]) -> dict[int, str]:
    """The targets that ``numbers`` make in their order, each with its first expression, without brackets where it can."""
    found: dict[int, str] = {}
    for brackets in (False, True):
        for operators in product(_OPERATIONS, repeat=len(numbers) - 1):
            made = _expression(numbers, operators, brackets)
            if made is not None and made[1] in TARGETS:
                found.setdefault(made[1], made[0])
    return found


def lessons(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """``problems`` with a right answer each, in ``completion``."""
    return [{**row, "completion": row["solution"]} for row in problems(split, n, seed)]


def careless_lessons(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """``problems`` with the answers of a teacher that errs, with the chances above, anew each time a problem comes again."""
    rng = random.Random(f"countdown, careless/{split}/{seed}")
    return [{**row, "completion": _careless_answer(row, rng)} for row in problems(split, n, seed)]


def _careless_answer(row: dict[str, Any], rng: random.Random) -> str:
    numbers, wanted = tuple(row["numbers"]), row["target"]
    chance = rng.random()
    if chance < WRONG_NUMBER:
        place = rng.randrange(len(numbers))
        numbers = (*numbers[:place], rng.choice(NUMBERS), *numbers[place + 1 :])
    if chance < WRONG_NUMBER + WRONG_TARGET:
        wanted = rng.choice(list(expressions(numbers)))
    return expressions(numbers)[wanted]


def solved(completion: str, solution: str) -> bool:
    """Whether a completion uses the numbers of ``solution`` and makes its value: a check that shares no code with rewards.

    The completion is an expression and nothing else, except ``= value`` behind it.
    """
    answer = completion.partition("=")[0]
    if len(answer) > _LONGEST or _TOKEN.sub("", answer).strip():
        return False
    try:
        same_value = _value(_TOKEN.findall(answer)) == _value(_TOKEN.findall(solution))
    except (ValueError, ZeroDivisionError):
        return False
    return same_value and sorted(re.findall("[0-9]+", answer)) == sorted(re.findall("[0-9]+", solution))


def _value(tokens: list[str]) -> Fraction:
    """The value of a tokenised expression.

    Raises:
        ValueError: the tokens are no expression.
    """
    rest = tokens[::-1]
    value = _terms(rest)
    if rest:
        raise ValueError(f"{rest[-1]!r} does not go on")
    return value


def _terms(rest: list[str]) -> Fraction:
    """Reads a sum from the end of ``rest``, whose last token comes first."""
    value = _factors(rest)
    while rest and rest[-1] in "+-":
        value = _OPERATIONS[rest.pop()](value, _factors(rest))
    return value


def _factors(rest: list[str]) -> Fraction:
    value = _operand(rest)
    while rest and rest[-1] in "*/":
        operator, right = rest.pop(), _operand(rest)
        value = value / right if operator == "/" else value * right
    return value


def _operand(rest: list[str]) -> Fraction:
    token = rest.pop() if rest else ""
    if token != "(":
        return Fraction(token)
    value = _terms(rest)
    if not rest or rest.pop() != ")":
        raise ValueError("a bracket is not closed")
    return value


def _expression(numbers: tuple[int, ...], operators: tuple[str, ...], brackets: bool) -> tuple[str, int] | None:
    """Text and value of ``a+b*c`` without brackets or ``(a+b)*c`` with; None where those would change nothing."""
    first, *others = (_OPERATIONS[operator] for operator in operators)
    if not others:
        return None if brackets else (f"{numbers[0]}{operators[0]}{numbers[1]}", first(*numbers))
    (a, b, c), second = numbers, others[0]
    later_binds = operators[1] == "*" and operators[0] != "*"
    if brackets:
        return (f"({a}{operators[0]}{b}){operators[1]}{c}", second(first(a, b), c)) if later_binds else None
    value = first(a, second(b, c)) if later_binds else second(first(a, b), c)
    return f"{a}{operators[0]}{b}{operators[1]}{c}", value


def _shuffled_forever(items: list[Problem], rng: random.Random) -> Iterator[Problem]:
    while True:
        yield from rng.sample(items, len(items))


def _row(problem: Problem) -> dict[str, Any]:
    numbers, target = problem
    prompt = PROMPT.format(target=target, numbers=" ".join(map(str, numbers)))
    return {"prompt": prompt, "numbers": list(numbers), "target": target, "solution": expressions(numbers)[target]}
