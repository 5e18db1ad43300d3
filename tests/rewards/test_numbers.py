"""Reading and comparing plain numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unigrpo.rewards._numbers import last_number, read_number, same_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so it is 72.", "72"),
        ("1 + 2 = 3", "3"),
        ("it costs $1,234.50 in all", "$1,234.50"),
        ("it costs \\$18.", "\\$18"),
        ("minus: -7", "-7"),
        ("minus: −7", "−7"),
        ("5-3", "3"),
        ("x-3", "3"),
        ("(5)-3", "3"),
        ("= -3", "-3"),
        ("a debt of -$40", "-$40"),
        ("three quarters, 3/4 of it", "3/4"),
        ("that is \\frac{3}{4}.", "\\frac{3}{4}"),
        ("-\\dfrac{1}{2}", "-\\dfrac{1}{2}"),
        ("about 50%", "50%"),
        ("about 50\\% of it", "50\\%"),
        ("0.5", "0.5"),
        (".5", ".5"),
        ("25 m2", "25"),
        ("25 m^2", "25"),
        ("the set 1,2", "2"),
        ("1,2345", "2345"),
        ("on 1/2/2024", "2024"),
        ("1.5e-3", "1.5e-3"),
        ("no digits", None),
        ("", None),
        ("٣ and ３", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("72", 72),
        ("+72", 72),
        ("-72", -72),
        ("007", 7),
        ("1,234,567", 1234567),
        ("1{,}234", 1234),
        ("0.50", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("\\frac{-3}{4}", Fraction(-3, 4)),
        ("$72", 72),
        ("72$", 72),
        ("72\\%", 72),
        ("72 percent", 72),
        ("72.", 72),
        ("72 apples", 72),
        ("72 square feet", 72),
        ("72 km/h", 72),
        ("72cm", 72),
        ("72 cm^2", 72),
        ("72\\text{ cm}^2", 72),
        ("72^\\circ", 72),
        ("1e5", 100000),
        ("3/0", None),
        ("\\frac{1}{0}", None),
        ("72x", None),
        ("72 x", None),
        ("2xyz", None),
        ("2pi", None),
        ("2 sqrt", None),
        ("10 million", None),
        ("10\\text{ million}", None),
        ("3 feet 5 inches", None),
        ("5 or 6", None),
        ("2+3", None),
        ("2^3", None),
        ("1:2", None),
        ("x", None),
        ("", None),
        pytest.param("9" * 1001, None, id="many digits"),
    ],
)
def test_read_number(expression, value):
    number = read_number(expression)
    assert (number and number.value) == value


@pytest.mark.parametrize(
    ("gold", "prediction", "same"),
    [
        ("72", "72.0", True),
        ("72", "72.0000001", False),
        ("0", "-0", True),
        ("50%", "50", True),
        ("50", "50%", True),
        ("50%", "0.5", True),
        ("50%", "50%", True),
        ("50%", "5000%", True),
        ("50", "5000", False),
        ("1/3", "0.333333", True),
        ("1/3", "0.333", False),
        ("1/2", "2/4", True),
        ("1/3", "333333/1000000", False),
        ("1/10000000", "0", False),
    ],
)
def test_same_number(gold, prediction, same):
    assert same_number(read_number(gold), read_number(prediction)) is same


@pytest.mark.smoke
@given(st.integers(-(10**12), 10**12), st.integers(0, 4), st.booleans())
def test_a_written_number_is_read_back(digits, places, commas):
    value = Fraction(digits, 10**places)
    whole, part = divmod(abs(digits), 10**places)
    written = f"{'-' if digits < 0 else ''}{whole:{',' if commas else ''}}" + (f".{part:0{places}}" if places else "")
    found = last_number(f"first 3, then it is {written} apples.")
    assert found == written
    assert read_number(found).value == value
