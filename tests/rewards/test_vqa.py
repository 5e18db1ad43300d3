"""``vqa_score`` and ``soft_tifa``: probabilities of answers about a picture."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.rewards import get_reward
from unigrpo.rewards._exchange import RewardServiceError
from unigrpo.rewards._reply import Reply, Token
from unigrpo.rewards.vqa import _mean, _probability, _yes
from unigrpo.testing import check_reward

from ..support.chat_servers import chat, completion, pictures, question, word
from ..support.images import picture
from ..support.reward_rows import RED, answers
from ..support.servers import no_proxy, serving  # noqa: F401
from ..support.tiny_scorers import Broken


def sees(exchange):
    """A model that finds red in every picture, 0.8 to 0.2, and blue in none."""
    yes = 0.6 if "red" in question(exchange.body) else 0.0
    exchange.json(word({"Yes": yes / 2, " yes": yes / 2, "no": 0.75 - yes, "maybe": 0.25}))


@pytest.mark.smoke
def test_vqa_score_is_the_share_of_yes_among_yes_and_no():
    metrics = {}
    with serving(sees) as seen:
        reward = chat(seen, "vqa_score")
        assert reward(["a red dot", "a dot"], [RED, RED], log_metric=metrics.__setitem__) == [pytest.approx(0.8), 0.0]
    red = next(body for body in seen.bodies if "red" in question(body))
    assert question(red) == 'Does this figure show "a red dot"? Please answer yes or no.' and len(pictures(red)) == 1
    assert {name: red[name] for name in ("max_tokens", "logprobs", "top_logprobs", "temperature")} == {
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
        "temperature": 0.0,
    }
    assert metrics["vqa_score/unparsable"] == metrics["vqa_score/failed"] == 0 and metrics["vqa_score/latency"] > 0


def test_pairs_are_those_of_the_other_scorers():
    """Drawn with reward_prompt or prompt, written with the first image; nothing else is asked about."""
    with serving(sees) as seen, pytest.warns(UserWarning, match="cannot be encoded"):
        scores = chat(seen, "vqa_score", template="{prompt}?", concurrency=1)(
            [[{"role": "user", "content": "red"}], "p", "p", "p", " ", "red"],
            [RED, RED, "red", "text", RED, Broken()],
            images=[None, None, [picture(0), picture(1)], None, None, None],
            reward_prompt=[None, "red", None, None, None, None],
        )
    assert scores == [pytest.approx(0.8)] * 3 + [None] * 3
    assert [question(body) for body in seen.bodies] == ["red?"] * 2 and len(
        {*map(str, map(pictures, seen.bodies))}
    ) == 2


def test_without_yes_and_no_there_is_no_score():
    metrics = {}
    with serving(lambda exchange: exchange.json(word({"perhaps": 0.9}))) as seen:
        assert chat(seen, "vqa_score")(["p"], [RED], log_metric=metrics.__setitem__) == [None]
    assert metrics["vqa_score/unparsable"] == 1
    with serving(lambda exchange: exchange.json(completion("yes"))) as seen:
        with pytest.raises(RewardServiceError, match=r"no chat completion with logprobs.*vllm serve"):
            chat(seen, "vqa_score")(["p"], [RED])


def reply(*places):
    """A reply of these tokens, each with the probabilities of its place."""
    tokens = tuple(Token(text, tuple((own, math.log(p)) for own, p in place.items())) for text, place in places)
    return Reply("".join(token.text for token in tokens), False, tokens)


def test_the_first_word_counts_behind_a_thought_and_blanks():
    yes = {"Yes": 0.5, "No": 0.125}
    assert _yes(reply(("\n", {"\n": 1.0, "no": 0.5}), ("Yes", yes))) == 0.8
    thought = [(text, {text: 1.0}) for text in ("no", "</think>", "\n\n")]
    assert _yes(reply(*thought, ("Yes", yes))) == 0.8
    assert _yes(reply(*thought)) is None


def test_the_probability_of_a_right_answer():
    two = reply((" Two", {" Two": 0.5, "2": 0.25, "three": 0.25}))
    assert [_probability(answer, two) for answer in ("two", "2", "3", "Three.", "four")] == [
        0.75,
        0.75,
        0.25,
        0.25,
        0.0,
    ]
    # Of several tokens: where it was said, the product of their probabilities.
    purple = reply(("pur", {"pur": 0.5, "red": 0.5}), ("ple", {"ple": 0.5}), (".", {".": 1.0}))
    assert _probability("purple", purple) == pytest.approx(0.25) and _probability("red", purple) == 0.5
    fire = reply(("fire", {"fire": 0.5}), (" truck", {" truck": 0.5}), ("s", {"s": 0.5}))
    assert _probability("fire", fire) == 0.5 and _probability("fire truck", fire) == 0.25


QUESTIONS = [["Is it red?", "Yes"], {"question": "Is it a dot?", "answer": "no"}]


@pytest.mark.parametrize(("mean", "expected"), [("geometric", math.sqrt(0.6 * 0.75)), ("arithmetic", 0.675)])
def test_soft_tifa_is_the_mean_probability_of_the_right_answers(mean, expected):
    metrics = {}
    with serving(sees) as seen:
        reward = chat(seen, "soft_tifa", mean=mean)
        given = [
            QUESTIONS,
            json.dumps(QUESTIONS),
            [],
            None,
            QUESTIONS,
            [["Is it red?", "perhaps"], ["Is it red?", True]],
        ]
        completions = [RED] * 4 + ["text", RED]
        scores = reward(["p"] * 6, completions, questions=given, log_metric=metrics.__setitem__)
    last = 0.0 if mean == "geometric" else 0.3
    assert scores == [pytest.approx(expected)] * 2 + [None] * 3 + [pytest.approx(last)]
    assert metrics["soft_tifa/unlisted"] == pytest.approx(1 / 6) and metrics["soft_tifa/cached"] == pytest.approx(
        4 / 6
    )
    assert {question(body) for body in seen.bodies} == {
        "Is it red? Answer with one word.",
        "Is it a dot? Answer with one word.",
    }


@settings(max_examples=100, deadline=None)
@given(
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    logprobs=st.dictionaries(
        st.sampled_from(["yes", "Yes", " no", "No", "two", "2"]), st.floats(-99, 0.0), min_size=1
    ),
)
def test_scores_are_in_their_range(shares, logprobs):
    """Also where rounding, or a server, has probabilities that sum to more than 1. A geometric mean is at most the arithmetic one."""
    own = Reply("x", False, (Token(next(iter(logprobs)), tuple(logprobs.items())),))
    score = _yes(own)
    assert score is None or 0 <= score <= 1
    assert 0 <= _probability("two", own) <= 1
    low, high = (_mean(shares, mean) for mean in ("geometric", "arithmetic"))
    assert 0 <= low <= high + 1e-9 <= 1 + 2e-9


def test_the_protocol_is_kept():
    with serving(sees) as seen:
        rows, text = answers(RED, picture(0), prompt="red"), answers("text")
        assert check_reward(chat(seen, "vqa_score"), rows, range=(0, 1), none_for=text) == [pytest.approx(0.8)] * 2
        rows = [{**row, "questions": QUESTIONS} for row in rows]
        none_for = [{**text[0], "questions": QUESTIONS}, {**rows[0], "questions": None}]
        check_reward(chat(seen, "soft_tifa"), rows, range=(0, 1), none_for=none_for)


@pytest.mark.parametrize(
    "given", ["no json", [["Is it?"]], [["Is it?", ""]], [["Is it?", None]], 5, [5], ["ab"], {"a": 1}]
)
def test_questions_of_another_form_are_an_error_that_names_the_row(given):
    with pytest.raises(
        ValueError, match=re.escape("soft_tifa: questions of row 1 must be pairs of a question and an answer")
    ):
        get_reward("soft_tifa", model="m")(["p"] * 2, [RED] * 2, questions=[None, given])


@pytest.mark.parametrize(
    ("name", "arguments", "part"),
    [
        ("vqa_score", {"template": "{solution}"}, "template has {solution}"),
        ("soft_tifa", {"template": "{prompt}"}, "template has {prompt}"),
        ("soft_tifa", {"mean": "harmonic"}, "mean must be one of ('geometric', 'arithmetic'), got 'harmonic'"),
    ],
)
def test_arguments_are_checked(name, arguments, part):
    with pytest.raises(ValueError, match=f"{name}: {re.escape(part)}"):
        get_reward(name, model="m", **arguments)
