"""Graders of texts: what each says of a table of answers, and what no answer can move."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.rewards import get_reward


CHOICES = ["Rome", "Paris", "The Hague"]
OBJECT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def score(reward, completion, **columns):
    """Of one row, by name or as it is."""
    function = get_reward(reward) if isinstance(reward, str) else reward
    return function(["p"], [completion], **{name: [value] for name, value in columns.items()})[0]


@pytest.mark.parametrize(
    ("expected", "cases"),
    [
        (
            1,
            [
                ("Paris", "Paris"),
                ("  to \n be ", "to be"),
                ("e\u0301", "\u00e9"),
                ("it is <answer> Paris </answer>, I think", "Paris"),
                ("7", 7),
                ("NYC", ["New York", "NYC"]),
            ],
        ),
        (
            0,
            [
                *[
                    (own, "Paris")
                    for own in ("paris", "Paris.", "it is Paris", "<think>Paris", "<think>a</think>Paris<think>b")
                ],
                ("<answer>Rome</answer> or <answer>Paris</answer>", "Rome"),
                ("7.0", 7),
            ],
        ),
        (None, [("Paris", ""), ("Paris", [])]),
    ],
)
def test_exact_match(expected, cases):
    assert [own for own in cases if score("exact_match", own[0], solution=own[1]) != expected] == []


def test_exact_match_ignores_what_it_is_told_to():
    loose = get_reward("exact_match", ignore_case=True, ignore_punctuation=True)
    assert [score(loose, own, solution="It's Paris!") for own in ("its paris", "IT’S PARIS", "is paris")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("letter", "completions"),
    [
        ("B", ["B", "(b).", "**B**", "B. Paris", "(B) Paris, as A. Rome is elsewhere", "\\boxed{B}"]),
        ("B", ["A? <answer>\\boxed{\\text{B}}</answer>", "Rome is A, so the answer is **B**", "It lies on the Seine.\n\nB"]),
        ("B", ["The answer is A. No: the answer is B, I think.", "The answer is B - a red cube, or so"]),
        ("C", ["the hague."]),
        (None, ["A or B", "the answer is A or B", "Answer: A/B", "(A), (B)", "A B C", "B. C. A.", "(B) (C)", "B. C"]),
        (None, ["The answer is B, or C", "Answer: B (or C)", "The answer is B; C", "The answer is B (or C, or A)"]),
        (None, ["A dog", "Option A's text", "E", "", "<think>B"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("solution", "right"), [("A", "A"), ("(b)", "B"), (2, "C"), ("The Hague", "C")])
def test_multiple_choice(letter, completions, solution, right):
    found = {own: score("multiple_choice", own, solution=solution, choices=CHOICES) for own in completions}
    assert found == dict.fromkeys(completions, float(letter == right))


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"n": 1}', 1),
        ('Here:\n```json\n{"n": 1}\n```', 1),
        ('```\n{"n": 1}\n```\nor\n```\n{"n": "1"}\n```', 0),
        ('Here: {"n": 1}', 0),
        ('{"n": 1.5}', 0),
        ('{"n": 1, "m": 2}', 0),
        ('{"n": NaN}', 0),
        ('<think>{"n": 1}', 0),
        ("[" * 90_000, 0),
        ('{"n": ' + "1" * 6_000 + "}", 0),
        ('{"n": 1}' + " " * 100_000 + ".", 0),
    ],
)
def test_json_schema(completion, expected):
    assert score(get_reward("json_schema", schema=OBJECT), completion) == expected
    assert score("json_schema", completion, schema=json.dumps(OBJECT)) == expected


EVIL, VICTIM = "^(a|aa)+$", "a" * 4_000 + "!"
DOUBLING = {
    "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)} | {"d60": {}},
    "$ref": "#/$defs/d0",
}


@pytest.mark.parametrize(
    ("reward", "arguments", "completion"),
    [
        ("regex", {"pattern": EVIL}, VICTIM),
        ("json_schema", {"schema": {"pattern": EVIL}}, json.dumps(VICTIM)),
        ("json_schema", {"schema": {"patternProperties": {EVIL: {}}}}, json.dumps({VICTIM: 1})),
        ("json_schema", {"schema": DOUBLING}, "1"),
    ],
)
def test_patterns_and_schemas_of_others_are_ended_in_time(reward, arguments, completion):
    logged, started = {}, time.monotonic()
    bounded = get_reward(reward, timeout=0.1, **arguments)
    assert bounded(["p"], [completion], log_metric=logged.__setitem__) == [0.0]
    assert logged == {f"{reward}/timeouts": 1.0} and time.monotonic() - started < 30


def test_regex_searches_the_answer_or_matches_all_of_it():
    year = {"pattern": r"(?i)YEAR \d{4}"}
    assert score(get_reward("regex", **year), "the year 2025.") == 1
    assert score(get_reward("regex", fullmatch=True, **year), "the year 2025.") == 0
    assert score(get_reward("regex", fullmatch=True, **year), "<think>no</think> year 2025\n") == 1
    assert score(get_reward("regex", **year), "<think>the year 2025") == 0


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>t</think> <answer>a</answer>", 1),
        ("<think>t</think> a", 0.5),
        ("<answer>a</answer>", 0.5),
        ("<think>t</think></answer><answer>", 0.75),
        ("<think>t</think><answer>a</answer><answer>b</answer>", 0.5),
        ("<think>t</think>" * 2, 0),
        ("", 0),
    ],
)
def test_tag_count(completion, expected):
    assert score("tag_count", completion) == expected


@pytest.mark.smoke
@pytest.mark.parametrize(("tokens", "expected"), [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (100, -1), (300, -1)])
def test_length_is_the_papers_formula(tokens, expected):
    reward = get_reward("length", max_completion_length=100)
    assert score(reward, "w" * tokens, completion_ids=[0] * tokens) == pytest.approx(expected)


def test_length_needs_tokens():
    with pytest.raises(ValueError, match="give a column `completion_ids`"):
        score(get_reward("length", max_completion_length=100), "some words")


@pytest.mark.parametrize(
    ("size", "completion", "expected"),
    [
        (2, "a b c d", 0),
        (2, "a b A B", -1 / 3),
        (1, "!!!!", -3 / 4),
        (2, "你好你好", -1 / 3),
        (4, "a b c", 0),
        (3, "x " * 103, -100 / 101),
    ],
)
def test_repetition(size, completion, expected):
    assert score(get_reward("repetition", ngram_size=size), completion) == pytest.approx(expected)


GRADERS = {
    "exact_match": ({}, {"solution": "B"}),
    "multiple_choice": ({}, {"solution": "B", "choices": CHOICES}),
    "regex": ({"pattern": "B"}, {}),
    "json_schema": ({"schema": {"const": 1}}, {}),
    "tag_count": ({}, {}),
}
PIECES = [*"BA1 \n\x00é", "Paris", "<answer>", "</answer>", "\\boxed{B}", "```\n", "The answer is B"]
said = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


@pytest.mark.parametrize("name", GRADERS)
@settings(max_examples=30, deadline=None)
@given(answers=st.lists(said, min_size=1, max_size=3), thoughts=st.tuples(said, said))
def test_a_score_is_of_the_answer_alone(name, answers, thoughts):
    """In its range; the same alone and in any batch; not moved by a thought, and the least for a thought without an end."""
    arguments, columns = GRADERS[name]
    reward = get_reward(name, **arguments)

    def scores(texts):
        return reward(["p"] * len(texts), texts, **{key: [own] * len(texts) for key, own in columns.items()})

    first = [f"<think>{thoughts[0]}</think>{answer}" for answer in answers]
    found = scores(first)
    assert all(0 <= own <= 1 for own in found)
    assert found == [scores([own])[0] for own in first]
    assert found == scores([f"<think>{thoughts[1]}</think>{answer}" for answer in answers])
    if name != "tag_count":
        assert found == scores(answers)
        assert scores([f"<think>{answer}" for answer in answers]) == [0.0] * len(answers)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("exact_match", {"ignore_case": "yes"}, "ignore_case must be true or false, got 'yes'"),
        ("regex", {"pattern": "("}, "is no regular expression"),
        ("regex", {"pattern": "a" * 1001}, "at most 1000 characters"),
        ("regex", {"pattern": "(?:(?:a{99}){99}){99}"}, "multiplied at most 100,000"),
        ("regex", {"pattern": "a", "timeout": 0}, "timeout must be"),
        ("json_schema", {"schema": {"type": "nope"}}, "'nope' is not valid"),
        ("json_schema", {"schema": {"$ref": "http://127.0.0.1:9/x"}}, "leads nowhere inside the schema"),
        ("json_schema", {"schema": {"$ref": "#/nope"}}, "leads nowhere inside the schema"),
        ("json_schema", {"schema": {"properties": {"a": {"pattern": "(a{999}){999}"}}}}, "multiplied at most"),
        ("json_schema", {"schema": "{"}, "give a JSON Schema"),
        ("tag_count", {"tags": "think"}, "tags must be a list"),
        ("tag_count", {"tags": ["a", "a"]}, "each once"),
        ("length", {"max_completion_length": 0}, "max_completion_length must be"),
        ("length", {"max_completion_length": 8, "soft_punish_cache": 9}, "from 1 to max_completion_length=8"),
        ("repetition", {"ngram_size": 0}, "ngram_size must be"),
        ("code_tests", {"timeout": -1}, "timeout must be"),
        ("code_tests", {"memory": 1}, "memory must be"),
        ("code_tests", {"concurrency": 0}, "concurrency must be"),
    ],
)
def test_bad_arguments_are_refused_at_once(name, arguments, words):
    with pytest.raises(ValueError) as refused:
        get_reward(name, **arguments)
    assert str(refused.value).startswith(f"{name}: ") and words in str(refused.value)


@pytest.mark.parametrize(
    ("name", "columns", "words"),
    [
        ("exact_match", {}, "needs a `solution` column"),
        ("exact_match", {"solution": {}}, "column `solution` has {}"),
        ("multiple_choice", {"solution": "Berlin", "choices": CHOICES}, "column `solution` has 'Berlin'"),
        ("multiple_choice", {"solution": 3, "choices": CHOICES}, "column `solution` has 3"),
        ("multiple_choice", {"solution": "A", "choices": "Rome"}, "column `choices` has 'Rome'"),
        ("regex", {}, "needs a `pattern` column"),
        ("json_schema", {}, "needs a `schema` column"),
        ("code_tests", {}, "needs a `test` column"),
        ("code_tests", {"inputs": ["1"], "outputs": []}, "as many `inputs` as `outputs`"),
        ("code_tests", {"test": "x", "entry_point": "f()"}, "column `entry_point` has 'f()'"),
    ],
)
def test_bad_columns_are_named(name, columns, words):
    with pytest.raises(ValueError) as refused:
        score(name, "B", **columns)
    assert str(refused.value).startswith(name) and words in str(refused.value)
