"""Reading and comparing numbers, and working out closed expressions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.rewards._exact import evaluate, rational
from unigrpo.rewards._notation import normalised
from unigrpo.rewards._numbers import read_number, same_number


@pytest.mark.parametrize(
    ("value", "expressions"),
    [
        (-72, ["-72"]),
        (72, ["72 percent", "72cm", "72\\text{ cm}^2"]),
        (1234, ["1{,}234"]),
        (Fraction(-3, 4), ["-3 / 4", "\\frac{-3}{4}"]),
        (10**7, ["10\\text{ million}"]),
        (24, ["2 dozen eggs"]),
        (Fraction(41, 12), ["3 feet 5 inches"]),
        (5, ["2+3"]),
        (8, ["2^3"]),
        (None, ["two dozen", "3/0", "\\frac{1}{0}", "0^{-1}", "72x", "72 x", "2xyz", "2 sqrt", "5 or 6", "1:2", "1,2345"]),
        (None, ["4 10/3", "1 2", "x", "", "9" * 1001, "9" * 1000 + "!", "(" * 100 + "1" + ")" * 100, "9^{9^{9}}"]),
    ],
    ids=lambda own: str(own)[:20],
)  # fmt: skip
def test_read_number(value, expressions):
    found = {own: read_number(own) for own in expressions}
    assert {own: number and rational(number.value) for own, number in found.items()} == dict.fromkeys(
        expressions, value
    )


@pytest.mark.parametrize(
    ("gold", "prediction", "same"),
    [
        ("72", "72.0000001", False),
        ("0", "-0", True),
        ("0", "1e-300", False),
        ("50%", "50%", True),
        ("50%", "5000%", False),
        ("1/3", "0.333333", False),
        ("1/3", "0.3333333333", True),
        ("1/10000000", "0", False),
        ("\\sqrt{2}", "1.41421356237", True),
        ("\\sqrt{2}", "1.41421", False),
        ("5 km", "5 m", False),
    ],
)
def test_same_number(gold, prediction, same):
    assert same_number(read_number(gold), read_number(prediction)) is same


def _expressions():
    """LaTeX and the sympy expression that it is."""
    leaf = st.integers(0, 40).map(lambda n: (str(n), sympy.Integer(n)))
    leaf |= st.integers(1, 60).map(lambda n: (f"\\sqrt{{{n}}}", sympy.sqrt(n))) | st.just(("\\pi", sympy.pi))

    def larger(own):
        pairs = st.tuples(own, own)
        return st.one_of(
            pairs.map(lambda p: (f"({p[0][0]}+{p[1][0]})", p[0][1] + p[1][1])),
            pairs.map(lambda p: (f"({p[0][0]}-{p[1][0]})", p[0][1] - p[1][1])),
            pairs.map(lambda p: (f"{p[0][0]} \\cdot {p[1][0]}", p[0][1] * p[1][1])),
            pairs.filter(lambda p: p[1][1] != 0).map(
                lambda p: (f"\\frac{{{p[0][0]}}}{{{p[1][0]}}}", p[0][1] / p[1][1])
            ),
            own.map(lambda p: (f"({p[0]})^2", p[1] ** 2)),
        )

    return st.recursive(leaf, larger, max_leaves=5)


@given(_expressions())
@settings(max_examples=80, derandomize=True, deadline=None)
def test_what_is_worked_out_is_what_sympy_says(pair):
    text, expected = pair
    found = evaluate(normalised(text))
    if found is not None:
        value = sum(
            (sympy.Rational(v) * sympy.sqrt(root) * sympy.pi**power for (root, power), v in found.value.items()),
            sympy.Integer(0),
        )
        assert sympy.expand(sympy.radsimp(value - expected)) == 0
        assert all(power == 1 for root, _ in found.value for power in sympy.factorint(root).values())
    elif not expected.has(sympy.zoo, sympy.nan):
        assert "frac" in text, "only a quotient by a sum has no value here"


def test_a_root_has_one_form():
    for number in range(1, 400):
        ((root, power),) = evaluate(f"\\sqrt{{{number}}}").value
        assert power == 0 and all(power == 1 for power in sympy.factorint(root).values()), number


@pytest.mark.smoke
@given(st.integers(-(10**12), 10**12), st.integers(0, 4), st.booleans())
def test_a_written_number_is_read_back(digits, places, commas):
    value = Fraction(digits, 10**places)
    whole, part = divmod(abs(digits), 10**places)
    written = f"{'-' if digits < 0 else ''}{whole:{',' if commas else ''}}" + (f".{part:0{places}}" if places else "")
    assert rational(read_number(written).value) == value
