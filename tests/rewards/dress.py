"""Numbers in other dress, and the texts around an answer: rewrites whose value is known because it was chosen first."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import strategies as st


def _grouped(value, sign=","):
    return f"{value:,}".replace(",", sign)


def _indian(value):
    head, tail = divmod(value, 1000)
    pairs = []
    while head > 99:
        head, pair = divmod(head, 100)
        pairs.append(f"{pair:02}")
    return ",".join([str(head), *reversed(pairs), f"{tail:03}"])


def _mixed(value):
    whole, rest = divmod(value, 1)
    return int(whole), rest.numerator, rest.denominator


WHOLE = {
    "plain": str,
    "plus": lambda n: f"+{n}",
    "leading zero": lambda n: f"0{n}",
    "decimal": lambda n: f"{n}.00",
    "point": lambda n: f"{n}.",
    "commas": _grouped,
    "braced commas": lambda n: _grouped(n, "{,}"),
    "negative space": lambda n: _grouped(n, ",\\!"),
    "spaces": lambda n: _grouped(n, " "),
    "thin spaces": lambda n: _grouped(n, "\\,"),
    "LaTeX spaces": lambda n: _grouped(n, "\\;"),
    "narrow no-break spaces": lambda n: _grouped(n, "\u202f"),
    "Indian": lambda n: _indian(n) if n > 999 else str(n),
    "dollars": lambda n: f"\\${n}",
    "a bare dollar": lambda n: f"${n}",
    "dollar in text": lambda n: f"\\text{{\\$}}{n}",
    "USD": lambda n: f"USD {_grouped(n)}",
    "rupees": lambda n: f"₹{n}",
    "cents behind": lambda n: f"{n}¢",
    "euros behind": lambda n: f"{n} €",
    "apples": lambda n: f"{n} apples",
    "text unit": lambda n: f"{n}\\text{{ apples}}",
    "roman unit": lambda n: f"{n}~\\mathrm{{kg}}",
    "square unit": lambda n: f"{n}\\ \\text{{cm}}^2",
    "per": lambda n: f"{n} km/h",
    "degrees": lambda n: f"{n}^\\circ",
    "a degree sign": lambda n: f"{n}°",
    "counted": lambda n: f"{n}个",
    "bold": lambda n: f"\\mathbf{{{n}}}",
    "about": lambda n: f"\\approx {n}",
    "named": lambda n: f"x = {n}",
    "function": lambda n: f"f(2) = {n}",
    "angle": lambda n: f"m\\angle ABC = {n}",
    "power of ten": lambda n: f"{n / 1000:.3f} \\times 10^{{3}}",
    "e": lambda n: f"{n}e0",
    "fullwidth": lambda n: str(n).translate({48 + d: 0xFF10 + d for d in range(10)}),
    "Arabic": lambda n: str(n).translate({48 + d: 0x660 + d for d in range(10)}),
    "a true chain": lambda n: f"{n - 1} + 1 = {n}",
    "an option": lambda n: f"\\textbf{{(C) }} {n}",
    "text": lambda n: f"\\text{{{n}}}",
    "math": lambda n: f"${n}$",
    "trailing comma": lambda n: f"{n},",
    "trailing break": lambda n: f"{n}\\\\",
    "percent": lambda n: f"{n}\\%",
}
"""A whole number of at least 1 -> a way to write it."""

PARTS = {
    "slash": lambda v: f"{v.numerator}/{v.denominator}",
    "frac": lambda v: f"\\frac{{{v.numerator}}}{{{v.denominator}}}",
    "dfrac": lambda v: f"\\dfrac{{{v.numerator}}}{{{v.denominator}}}",
    "double backslash": lambda v: f"\\\\frac{{{v.numerator}}}{{{v.denominator}}}",
    "mixed": lambda v: "{} {}/{}".format(*_mixed(v)) if v > 1 else f"{v.numerator}/{v.denominator}",
    "mixed LaTeX": lambda v: "{}\\frac{{{}}}{{{}}}".format(*_mixed(v)) if v > 1 else f"\\frac{{{v.numerator}}}{{{v.denominator}}}",
    "fraction slash": lambda v: f"{v.numerator}⁄{v.denominator}",
    "with a unit": lambda v: f"\\frac{{{v.numerator}}}{{{v.denominator}}} \\text{{ cups}}",
    "displayed": lambda v: f"\\displaystyle\\frac{{{v.numerator}}}{{{v.denominator}}}",
    "decimal": lambda v: f"{float(v):.15g}",
    "times 10": lambda v: f"{float(v) * 1000:.15g} \\times 10^{{-3}}",
}  # fmt: skip
"""A positive fraction in lowest terms -> a way to write it."""

AROUND = {
    "box": "\\boxed{{{}}}",
    "fbox": "The value is \\fbox{{{}}}. It took 3 steps.",
    "box in math": "So $\\boxed{{{}}}$, as was asked for in part 2.",
    "double backslash box": "\\\\boxed{{{}}}",
    "second box": "First \\boxed{{3}}, no: \\boxed{{{}}}",
    "nested box": "\\boxed{{\\boxed{{{}}}}}",
    "tag": "<answer>{}</answer>",
    "tag with lines": "It took 2 steps.\n<answer>\n{}\n</answer>\n",
    "thought": "<think>Is it \\boxed{{4}} or <answer>5</answer>?</think>\\boxed{{{}}}",
    "thought and tag": "<think>6, 7, 8</think>\n<answer>{}</answer><|eot_id|>",
    "template's thought": "It may be 9.</think>\\boxed{{{}}}",
}
"""Texts that mark an answer, which has no braces of its own left open."""

PLAIN_AROUND = {
    "bare": "{}",
    "behind a thought": "<think>6, 7, 8</think>{}",
    "line": "48/2 = 24\n#### {}",
    "said": "The answer is {}.",
    "said to 3 places": "After 3 steps, the final answer is: **{}**. I checked it 2 times.",
    "in a sentence": "So after 2 days she has {} of them",
    "last": "With 3 and 4 that makes {}",
}
"""Texts around a number that is written with digits alone."""

whole = st.integers(1, 10**7)
parts = st.fractions(min_value=Fraction(1, 64), max_value=20, max_denominator=64).filter(lambda v: v.denominator > 1)
