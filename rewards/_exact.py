r"""Closed expressions worked out exactly: sums of rational multiples of roots and powers of pi.

``10 - 2\sqrt{5}`` is ``{(5, 0): -2, (1, 0): 10}``. What has no such value, or one too large to be had at once, is left to
others. An expression is read once, from left to right; depth, digits, exponents and factorials are bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from math import comb, factorial, gcd, isqrt


Value = dict[tuple[int, int], Fraction]
"""Root (square-free, 1 for none) and power of pi -> its rational factor, never 0."""

MAX_LENGTH = 1_000
MAX_DEPTH = 40
MAX_BITS = 20_000
MAX_RADICAND = 10**10
MAX_FACTORIAL = 500

ONE = (1, 0)

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"|(?P<command>\\(?:frac|sqrt|d?binom|pi|times|cdot|div|lfloor|rfloor|lceil|rceil)(?![A-Za-z]))|(?P<sign>[-+*/^!(){}\[\]]))"
)
_PRODUCTS = {"*", "\\times", "\\cdot"}
_QUOTIENTS = {"/", "\\div"}
_OPENERS = {"(": ")", "{": "}", "[": "]", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_ATOMS = {*_OPENERS, "\\frac", "\\sqrt", "\\binom", "\\dbinom", "\\pi"}


@dataclass(slots=True)
class Expression:
    """What an expression is.

    Attributes:
        value: what it comes to.
        numbers: its literals, as written.
        open: an operator stands between plain numbers, a sum, a difference, a product or a quotient that is not worked out.
        unreduced: there is a fraction of whole numbers that is not in lowest terms, or over 1.
        signed: a sign stands before something; there is no operator there.
        other: there is more than numbers, brackets and the four operators.
    """

    value: Value = field(default_factory=dict)
    numbers: list[str] = field(default_factory=list)
    open: bool = False
    unreduced: bool = False
    signed: bool = False
    other: bool = False


class _NoValueError(ValueError):
    """It is no closed expression, or one that is too large to be worked out here."""


def evaluate(expression: str) -> Expression | None:
    """The expression, in the notation of ``_notation.normalised``; None for one that has no value here, as over 0."""
    if len(expression) > MAX_LENGTH:
        return None
    tokens, position, expression = [], 0, expression.strip()
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            return None
        tokens.append(match[match.lastgroup])
        position = match.end()
    reader = _Reader(tokens)
    try:
        reader.found.value = reader.sum()
        return reader.found if tokens and reader.next is None else None
    except (_NoValueError, ZeroDivisionError):
        return None


def rational(value: Value) -> Fraction | None:
    """A value without roots and pi as a fraction."""
    return Fraction(0) if not value else value.get(ONE) if len(value) == 1 else None


class _Reader:
    """Recursive descent over the tokens. Each method reads what its name says and returns the value."""

    def __init__(self, tokens: list[str]) -> None:
        self.rest, self.found, self.depth = tokens[::-1], Expression(), 0

    @property
    def next(self) -> str | None:
        return self.rest[-1] if self.rest else None

    def take(self, wanted: str | None = None) -> str:
        if not self.rest or wanted not in (None, self.rest[-1]):
            raise _NoValueError
        return self.rest.pop()

    def sum(self) -> Value:
        value = self.product()
        while self.next in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            right = self.product()
            self._operator(value, right)
            value = _added(value, {key: sign * factor for key, factor in right.items()})
        return value

    def product(self) -> Value:
        """Factors with a sign between them, or side by side: ``2 \\cdot 3``, ``2\\pi``."""
        value, literal = self.signed()
        while self.next in _PRODUCTS | _QUOTIENTS | _ATOMS:
            operator = self.take() if self.next in _PRODUCTS | _QUOTIENTS else ""
            right, whole = self.signed() if operator else (self.power(), None)
            if operator == "/" and literal is not None and whole is not None:
                self._fraction(literal, whole)
            elif operator != "/" or (rational(value) is not None and rational(right) is not None):
                self._operator(value, right)
            value = _multiplied(value, _inverse(right) if operator in _QUOTIENTS else right)
            literal = None
        return value

    def signed(self) -> tuple[Value, int | None]:
        """A factor, and the whole number that it is written as, if it is no more than that."""
        if self.next in ("+", "-"):
            self.found.signed = True
            sign = -1 if self.take() == "-" else 1
            self._deeper()
            value, literal = self.signed()
            self.depth -= 1
            return {key: sign * factor for key, factor in value.items()}, literal
        literal = int(self.next) if self.next is not None and self.next.isdecimal() else None
        before = len(self.rest)
        value = self.power()
        return value, literal if len(self.rest) == before - 1 else None

    def power(self) -> Value:
        value = self.atom()
        while self.next in ("^", "!"):
            self.found.other = True
            value = _factorial(value) if self.take() == "!" else self._raised(value)
        return value

    def atom(self) -> Value:
        """What has no parts: a bracket, a number, a root, a fraction or a constant."""
        token = self.take()
        if token in _OPENERS:
            return self._bracket(token)
        if token[0] in "0123456789.":
            return self._number(token)
        if token not in _ATOMS:
            raise _NoValueError
        if token == "\\frac":
            return self._divided()
        self.found.other = True
        if token == "\\pi":
            return {(1, 1): Fraction(1)}
        if token == "\\sqrt":
            return self._root()
        top, bottom = _whole(self._group()), _whole(self._group())
        if not 0 <= bottom <= top <= 2 * MAX_FACTORIAL:
            raise _NoValueError
        return _value(Fraction(comb(top, bottom)))

    def _number(self, token: str) -> Value:
        self.found.numbers.append(token)
        value = Fraction(token.replace(",", ""))
        # A whole number before a proper fraction is a mixed number.
        ahead = self.rest[-1:-8:-1]
        mixed = (
            len(ahead) == 7 and ahead[0] == "\\frac" and ahead[1] == ahead[4] == "{" and ahead[3] == ahead[6] == "}"
        )
        if mixed and all(part.isdecimal() for part in (token, ahead[2], ahead[5])) and int(ahead[2]) < int(ahead[5]):
            self.found.other = True
            del self.rest[-7:]
            self._fraction(int(ahead[2]), int(ahead[5]))
            value += Fraction(int(ahead[2]), int(ahead[5]))
        return _value(value)

    def _bracket(self, opener: str) -> Value:
        self._deeper()
        value = self.sum()
        self.take(_OPENERS[opener])
        self.depth -= 1
        if not opener.startswith("\\"):
            self.found.other |= opener == "["
            return value
        self.found.other, number = True, rational(value)
        if number is None:
            raise _NoValueError
        return _value(Fraction(number // 1 if opener == "\\lfloor" else -(-number // 1)))

    def _group(self) -> Value:
        self.take("{")
        return self._bracket("{")

    def _divided(self) -> Value:
        before = len(self.found.numbers)
        top, bottom = self._group(), self._group()
        literals = self.found.numbers[before:]
        if len(literals) == 2 and all(own.isdecimal() for own in literals) and not self.found.other:
            self._fraction(*map(int, literals))
        value = _multiplied(top, _inverse(bottom))
        number = rational(value)
        self.found.unreduced |= number is not None and number.denominator == 1
        return value

    def _root(self) -> Value:
        index = 2
        if self.next == "[":
            self.take()
            index = _whole(self._bracket("["))
        radicand = rational(self._group())
        if radicand is None:
            raise _NoValueError
        return _square_root(radicand) if index == 2 else _value(_whole_root(radicand, index))

    def _raised(self, base: Value) -> Value:
        if self.next is not None and self.next.isdecimal() and len(self.next) > 1:
            # LaTeX raises to the first digit alone, everybody means all.
            exponent = int(self.take())
        else:
            exponent = _whole(self._exponent())
        number = rational(base)
        if number == 0 and exponent < 0:
            raise ZeroDivisionError
        if number is not None:
            bits = max(number.numerator.bit_length(), number.denominator.bit_length(), 1)
            if bits * abs(exponent) > MAX_BITS:
                raise _NoValueError
            return _value(number**exponent)
        if not 0 <= exponent <= 8:
            raise _NoValueError
        value: Value = _value(Fraction(1))
        for _ in range(exponent):
            value = _multiplied(value, base)
        return value

    def _exponent(self) -> Value:
        if self.next in ("+", "-"):
            sign = -1 if self.take() == "-" else 1
            return {key: sign * factor for key, factor in self.atom().items()}
        return self.atom()

    def _fraction(self, top: int, bottom: int) -> None:
        self.found.unreduced |= bottom <= 1 or gcd(top, bottom) != 1

    def _operator(self, left: Value, right: Value) -> None:
        self.found.open |= rational(left) is not None and rational(right) is not None

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _NoValueError


def _value(number: Fraction) -> Value:
    return {ONE: number} if number else {}


def _bounded(value: Value) -> Value:
    if any(max(own.numerator.bit_length(), own.denominator.bit_length()) > MAX_BITS for own in value.values()):
        raise _NoValueError
    return {key: factor for key, factor in value.items() if factor}


def _added(left: Value, right: Value) -> Value:
    return _bounded({key: left.get(key, Fraction(0)) + right.get(key, Fraction(0)) for key in {**left, **right}})


def _multiplied(left: Value, right: Value) -> Value:
    if len(left) * len(right) > 16:
        raise _NoValueError
    value: Value = {}
    for (root, power), factor in left.items():
        for (other, another), own in right.items():
            common = gcd(root, other)
            key = (root // common * (other // common), power + another)
            value[key] = value.get(key, Fraction(0)) + factor * own * common
    return _bounded(value)


def _inverse(value: Value) -> Value:
    if not value:
        raise ZeroDivisionError
    if len(value) > 1:
        raise _NoValueError
    (((root, power), factor),) = value.items()
    return {(root, -power): 1 / (factor * root)}


def _whole(value: Value) -> int:
    number = rational(value)
    if number is None or number.denominator != 1 or number.numerator.bit_length() > 64:
        raise _NoValueError
    return number.numerator


def _factorial(value: Value) -> Value:
    number = _whole(value)
    if not 0 <= number <= MAX_FACTORIAL:
        raise _NoValueError
    return _value(Fraction(factorial(number)))


def _square_root(radicand: Fraction) -> Value:
    inside, outside, kept, divisor = radicand.numerator * radicand.denominator, 1, 1, 2
    if inside < 0:
        raise _NoValueError
    exact = isqrt(inside)
    if exact * exact == inside:
        return _value(Fraction(exact, radicand.denominator))
    if inside > MAX_RADICAND:
        raise _NoValueError
    # Divisors up to the cube root: what is left has two prime factors at most.
    while divisor**3 <= inside:
        while inside % (divisor * divisor) == 0:
            inside, outside = inside // (divisor * divisor), outside * divisor
        if inside % divisor == 0:
            inside, kept = inside // divisor, kept * divisor
        divisor += 1
    rest = isqrt(inside)
    if rest * rest == inside:
        inside, outside = 1, outside * rest
    return {(inside * kept, 0): Fraction(outside, radicand.denominator)}


def _whole_root(radicand: Fraction, index: int) -> Fraction:
    if (
        not 3 <= index <= 64
        or max(abs(radicand.numerator), radicand.denominator) > 2**256
        or (radicand < 0 and index % 2 == 0)
    ):
        raise _NoValueError
    parts = []
    for own in (abs(radicand.numerator), radicand.denominator):
        guess = round(own ** (1 / index))
        if guess**index != own:
            raise _NoValueError
        parts.append(guess)
    return Fraction(parts[0] if radicand > 0 else -parts[0], parts[1])
