"""Rewards under rewrites of an answer: other numbers, other dress, other surroundings. Expected values come first."""

from __future__ import annotations

from fractions import Fraction
from math import factorial

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from unigrpo.rewards import answer_correctness, countdown, math_correctness, think_format
from unigrpo.rewards import math as reward_module
from unigrpo.rewards._math_process import Verdict

from .dress import AROUND, PARTS, PLAIN_AROUND, WHOLE, parts, whole


def score(completion, solution, **kwargs):
    return math_correctness(["p"], [completion], [solution], **kwargs)[0]


@pytest.fixture(autouse=True)
def no_worker(monkeypatch):
    """Every number is read in process."""
    monkeypatch.setattr(reward_module.WORKER, "compare", lambda *own: pytest.fail(f"{own} went to the worker"))


@pytest.mark.parametrize("dress", WHOLE)
@settings(max_examples=10, derandomize=True, deadline=None)
@given(value=whole, off=st.sampled_from([1, -1, 10, 10**6]), around=st.sampled_from([*AROUND]))
def test_a_whole_number_in_any_dress_and_place(dress, value, off, around):
    text = AROUND[around].format(WHOLE[dress](value))
    golds = [value, f"#### {value}", f"so $\\boxed{{{value:,}}}$.", value + off]
    assert [score(text, gold) for gold in golds] == [1.0, 1.0, 1.0, 0.0], text
    golds = [f"<answer>{value}</answer>", str(value + off)]
    assert answer_correctness(["p"] * 2, [text] * 2, golds) == [1.0, 0.0], text
    if dress != "an option":
        assert score(AROUND[around].format(value), WHOLE[dress](value)) == 1.0, "a gold in that dress"


@pytest.mark.parametrize("dress", PARTS)
@settings(max_examples=10, derandomize=True, deadline=None)
@given(value=parts, other=parts, around=st.sampled_from([*AROUND]), gold=st.sampled_from([*PARTS]))
def test_a_fraction_in_any_dress_and_place(dress, value, other, around, gold):
    text = AROUND[around].format(PARTS[dress](value))
    assert score(text, PARTS[gold](value)) == 1.0, text
    assert score(text, PARTS[gold](other)) == float(value == other), text


@pytest.mark.parametrize("around", PLAIN_AROUND)
@settings(max_examples=20, derandomize=True, deadline=None)
@given(value=st.integers(-(10**6), 10**6), off=st.integers(1, 99))
def test_a_plain_number_anywhere(around, value, off):
    text = PLAIN_AROUND[around].format(value)
    assert [score(text, value), score(text, str(value + off))] == [1.0, 0.0], text


LEFT_OPEN = [
    "{a} + {b}", "{c} - {b}", "{a} \\times 1 + {b}", "({a} + {b})", "{a}+{b}\\text{{ apples}}", "{twice} \\div 2",
    "{twice}/2", "\\frac{{{twice}}}{{2}}", "{a} + {b} + 0", "{b} - (-{a})", "\\frac{{{twice}^1}}{{2}}",
    "2^0 \\cdot {c}", "x = {a} + {b}",
]  # fmt: skip


@pytest.mark.parametrize("form", LEFT_OPEN)
@given(a=st.integers(2, 999), b=st.integers(2, 999))
@settings(max_examples=5, derandomize=True, deadline=None)
def test_what_is_not_worked_out_is_no_answer_to_a_plain_number(form, a, b):
    answer = form.format(a=a, b=b, c=a + b + (b if "- {b}" in form else 0), twice=2 * (a + b))
    text, logged = f"\\boxed{{{answer}}}", {}
    assert score(text, a + b, log_metric=logged.__setitem__) == 0.0
    assert logged["math_correctness/not_evaluated"] == 1.0
    assert score(text, a + b, evaluated=False) == 1.0
    assert score(text, a + b + 1, evaluated=False) == 0.0
    assert score(f"\\boxed{{{answer} = {a + b}}}", a + b) == 1.0


WORKED_OUT = [
    ("2^{{{n}}}", lambda n: 2**n),
    ("{n}!", factorial),
    ("\\sqrt{{{square}}}", lambda n: n),
    ("\\binom{{{n}}}{{2}}", lambda n: n * (n - 1) // 2),
    ("\\lfloor {n}.7 \\rfloor", lambda n: n),
    ("\\sqrt[3]{{{cube}}}", lambda n: n),
    ("\\frac{{1}}{{{n}}}", lambda n: Fraction(1, n)),
]


@pytest.mark.parametrize(("form", "value"), WORKED_OUT)
@given(n=st.integers(2, 20))
@settings(max_examples=5, derandomize=True, deadline=None)
def test_powers_roots_and_fractions_in_lowest_terms_are_answers(form, value, n):
    wanted, answer = value(n), form.format(n=n, square=n * n, cube=n**3)
    assert [score(f"\\boxed{{{answer}}}", str(wanted)), score(f"\\boxed{{{answer}}}", str(wanted + 1))] == [1.0, 0.0]


HEDGES = [
    "\\boxed{{{a} = {b}}}", "\\boxed{{{a} \\text{{ or }} {b}}}", "\\boxed{{\\{{{a}, {b}\\}}}}",
    "<answer>{a} or {b}</answer>", "{a}, {b}", "<answer>It could be {a} or it could be {b}</answer>",
    "The answer is {a} or {b}.", "\\boxed{{1 + {a} = {b}}}", "\\boxed{{\\pm {b}}}", "\\boxed{{x = {a}, y = {b}}}",
    "\\boxed{{x = {a} \\text{{ or }} x = {b}}}", "I think {a}, or maybe {b}.", "\\boxed{{({a}, {b})}}",
    "\\boxed{{{a} : {b}}}",
]  # fmt: skip


@pytest.mark.parametrize("form", HEDGES)
@given(a=st.integers(2, 999), b=st.integers(2, 999))
@settings(max_examples=5, derandomize=True, deadline=None)
def test_two_answers_are_none_and_a_false_chain_is_wrong(form, a, b):
    assume(a != b and a + 1 != b)
    text = form.format(a=a, b=b)
    assert [score(text, a), score(text, b)] == [0.0, 0.0]
    assert set(answer_correctness(["p"] * 2, [text] * 2, [a, b])) == {0.0}


@given(st.integers(100, 999), st.integers(-40, 40), st.sampled_from([0, 1, -1, 3]))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_equality_is_relative_at_every_size(digits, power, off):
    gold = f"{digits / 100:.2f} \\times 10^{{{power}}}"
    answers = [
        f"{digits / 100:.2f}e{power + off}",
        f"{digits}0000000{1 if off and power < 0 else 0} \\cdot 10^{{{power - 10}}}",
        "0.0",
        "0",
    ]
    expected = [float(off == 0), 1.0, 0.0, 0.0]
    if off:
        # One part in 10^10 is equal, one in 10^7 is not.
        answers.append(f"{digits}00001 \\cdot 10^{{{power - 7}}}")
        expected.append(0.0)
    assert [score(f"\\boxed{{{own}}}", gold) for own in answers] == expected


@given(st.integers(3, 97).filter(lambda n: n % 2 and n % 5), st.integers(1, 2))
@settings(max_examples=30, derandomize=True, deadline=None)
def test_repeating_decimals_are_exact_and_rounded_ones_are_not(bottom, top):
    places, rest, block = 0, top % bottom, ""
    while not block or rest != top % bottom:
        digit, rest = divmod(10 * rest, bottom)
        block, places = block + str(digit), places + 1
    gold, start = f"\\frac{{{top}}}{{{bottom}}}", f"{top // bottom}."
    for form in ("{}\\overline{{{}}}", "{}\\bar{{{}}}", "{}({})"):
        if len(block) <= 40:
            assert score(f"\\boxed{{{form.format(start, block)}}}", gold) == 1.0
    assert score(f"\\boxed{{{start}{(block * 20)[:15]}}}", gold) == 1.0
    assert score(f"\\boxed{{{start}{(block * 20)[:4]}}}", gold) == 0.0


@given(st.permutations("abcdeilno"), st.permutations("abcdeilno"), st.integers(2, 7))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_words_are_compared_as_words(first, second, length):
    gold, other = "".join(first[:length]), "".join(second[:length])
    for form in ("\\boxed{{{}}}", "\\boxed{{\\text{{{}}}}}", "<answer>{}.</answer>", "The answer is {}."):
        assert [score(form.format(own), gold) for own in (gold.title(), other)] == [1.0, float(gold == other)]


OPTIONS = ["\\boxed{{{}}}", "\\boxed{{({})}}", "\\boxed{{\\textbf{{({}) }} 14}}", "\\boxed{{\\text{{{}: the sum}}}}"]
OPTIONS += ["The correct option is {}.", "<answer>{}. 145</answer>", "Answer: {}"]


@given(st.sampled_from("ABCDE"), st.sampled_from("ABCDE"), st.integers(2, 99))
@settings(max_examples=30, derandomize=True, deadline=None)
def test_options_in_every_form(gold, said, number):
    right = float(said == gold)
    for form in OPTIONS:
        text = form.format(said)
        assert [score(text, wanted) for wanted in (gold, f"({gold})", f"\\text{{({gold})}}")] == [right] * 3, text
        assert answer_correctness(["p"], [text], [gold]) == [right], text
    other = "ABCDE"["ABCDE".index(said) - 1]
    for form in ("{} or {}", "({})({})", "The answer is {} or {}.", "<answer>{}, {}</answer>"):
        both = [form.format(said, other), form.format(other, said)]
        assert set(answer_correctness(["p"] * 2, both, [gold] * 2)) == {0.0}, both
    assert answer_correctness(["p"], [f"The answer is {said}, not option {other}."], [gold]) == [right]


@given(st.lists(st.integers(2, 99), min_size=2, max_size=4, unique=True), st.randoms(use_true_random=False))
@settings(max_examples=30, derandomize=True, deadline=None)
def test_several_boxes_are_a_list_where_the_gold_is_one(values, rng):
    order, listed = rng.sample(values, len(values)), ", ".join(map(str, values))
    boxes = " and ".join(f"\\boxed{{{own}}}" for own in order)
    for gold in (listed, " and ".join(map(str, values)), f"\\{{{listed}\\}}"):
        assert score(boxes, gold) == score(f"\\boxed{{{', '.join(map(str, order))}}}", gold) == 1.0
        assert score(boxes + " or \\boxed{100}", gold) == score(f"\\boxed{{{order[0]}}}", gold) == 0.0
    assert score(boxes, order[-1]) == 1.0 and score(boxes, order[0]) == 0.0
    assert score(f"\\boxed{{({listed})}}", listed) == 0.0, "an order that nobody asked for"


SOUP = st.lists(
    st.sampled_from(["\\boxed{7}", "7", "The answer is 7.", "<answer>7</answer>", "#### 7", " or ", "8", "$7$", "x = 7", "\n", "B", "(B)", "yes", "\\boxed{", "}"])
    | st.text(max_size=4),
    max_size=6,
).map(" ".join).map(lambda text: text.replace("think", ""))  # fmt: skip


@pytest.mark.smoke
@given(SOUP, SOUP, st.sampled_from(["7", "B", "yes", "\\frac{7}{1}"]))
@settings(max_examples=200, derandomize=True, deadline=None)
@example("\\boxed{7}", "8", "7")
def test_an_answer_never_scores_by_what_stands_in_its_thought(thought, said, gold):
    def graded(text, **kwargs):
        rows = {"prompts": ["p"], "completions": [text], **kwargs}
        puzzle = countdown(**rows, numbers=[[7]], target=[7])
        return [*math_correctness(**rows, solution=[gold]), *answer_correctness(**rows, solution=[gold]), *puzzle]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_module.WORKER, "compare", lambda *_: Verdict.DIFFERENT)
        alone = graded(said)
        assert graded(f"<think>{thought}</think>{said}") == graded(f"{thought}</think>{said}") == alone
        assert graded(f"{thought}</think>{said}", opened=True) == alone
        ended = graded(f"<think>{thought}"), graded(thought, opened=True), graded(f"<think>{thought}</think>")
        assert ended == ([0.0] * 3,) * 3 and graded(f"{said}</think>{thought}<think>{said}") == [0.0] * 3
        assert all(own in (0.0, 0.1, 1.0) for own in alone)
        assert think_format(["p"], [f"{thought}a</think>b"], opened=True) == [1.0]


def _expression(rng, numbers):
    """Text with ``*`` and ``/``, text in LaTeX, and value of a random expression over the numbers."""
    if len(numbers) == 1:
        return str(numbers[0]), str(numbers[0]), Fraction(numbers[0])
    cut = rng.randrange(1, len(numbers))
    (a, latex_a, left), (b, latex_b, right) = _expression(rng, numbers[:cut]), _expression(rng, numbers[cut:])
    sign = rng.choice("+-*/" if right else "+-*")
    value = {"+": left + right, "-": left - right, "*": left * right, "/": left / right if right else None}[sign]
    latex = {
        "+": f"\\left({latex_a} + {latex_b}\\right)",
        "-": f"({latex_a} – {latex_b})",
        "*": rng.choice([f"({latex_a} × {latex_b})", f"({latex_a})({latex_b})", f"[{latex_a}] x".replace("[", "(").replace("]", ")") + f" ({latex_b})"]),
        "/": rng.choice([f"\\frac{{{latex_a}}}{{{latex_b}}}", f"({latex_a} ÷ {latex_b})"]),
    }[sign]  # fmt: skip
    return f"({a}{sign}{b})", latex if sign != "*" else f"({latex})", value


@given(st.lists(st.integers(0, 30), min_size=2, max_size=5), st.randoms(use_true_random=False), st.integers(-3, 3))
@settings(max_examples=150, derandomize=True, deadline=None)
def test_countdown_in_any_dress(numbers, rng, off):
    plain, latex, value = _expression(rng, rng.sample(numbers, len(numbers)))
    assume(value.denominator == 1)

    def scores(texts):
        texts = list(texts)
        columns = {"numbers": [numbers] * len(texts), "target": [int(value) + off] * len(texts)}
        return dict(zip(texts, countdown(["p"] * len(texts), texts, **columns), strict=True))

    dressed = (plain, latex, f"`{plain}`", f"{plain}.", f"${latex}$", f"\\boxed{{{latex}}}")
    dressed = [
        f"<answer>{own}</answer>" for own in (*dressed, f"{plain} = {value}", f"{value} = {latex}") if len(own) <= 190
    ]
    assert set(scores(dressed).values()) == {0.1 if off else 1.0}, scores(dressed)
    assert set(scores([f"{plain} = {int(value) + 5}"]).values()) == {0.1}, "a value that it has not"
    decimal = plain.replace(str(numbers[0]), f"{numbers[0]}.0")
    wrong = scores([f"{plain} + 1", f"-{plain}", f"({plain})^1", f"{plain} + (-0)", decimal])
    assert set(wrong.values()) == {0.0}, wrong
