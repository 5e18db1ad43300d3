"""``judge``: probabilities of its score, several questions, schemas, answers that are kept, what it costs."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.rewards import get_reward
from unigrpo.rewards._exchange import RewardServiceError
from unigrpo.rewards._reply import Reply, Token, read_reply

from ..support.chat_servers import chat, completion, question, says
from ..support.servers import no_proxy, serving  # noqa: F401


DIGITS = {"7": 0.5, "8": 0.25, "3": 0.05, " 8": 0.05, "good": 0.1, "78": 0.05}


def score(answer, **arguments):
    with serving(answer) as seen:
        return chat(seen, "judge", **arguments)(["p"], ["c"])[0]


@pytest.mark.smoke
def test_the_score_is_the_mean_of_the_digits_under_the_judges_probabilities():
    with serving(says("7", [("7", DIGITS), ("<|im_end|>", {"<|im_end|>": 1.0})])) as seen:
        reward = chat(seen, "judge", scale=(1, 9), logprobs=True)
        assert reward(["p"], ["c"]) == [pytest.approx((7 * 0.5 + 8 * 0.3 + 3 * 0.05) / 0.85)]
        # 3 is off this scale, so it has no say.
        narrow = chat(seen, "judge", scale=(5, 9), logprobs=True, top_logprobs=5)
        assert narrow(["p"], ["c"]) == [pytest.approx((7 * 0.5 + 8 * 0.3) / 0.8)]
    assert [(body["logprobs"], body["top_logprobs"]) for body in seen.bodies] == [(True, 20), (True, 5)]


def test_the_place_of_the_score_is_found_among_the_tokens():
    nine, two = {"9": 0.75, "1": 0.25}, {"2": 0.5, "4": 0.5}
    thought = [("<think>", {}), ("2", {"2": 1.0}), ("</think>", {})]
    rated = [("\n\n", {}), ("Score", {}), (": ", {}), ("9", nine), ("/", {}), ("9", {"9": 1.0})]
    thought, rated = ([(text, own or {text: 1.0}) for text, own in part] for part in (thought, rated))
    text = "".join(token for token, _ in rated)
    common = {"scale": (1, 9), "logprobs": True}
    assert score(says(f"<think>2</think>{text}", thought + rated), **common) == pytest.approx(7.0)
    # A server that keeps the thought apart has its tokens nevertheless, and strips the text.
    assert score(says(text.strip(), thought + rated), **common) == pytest.approx(7.0)
    # Through a pattern.
    places = [("2", two), (" of ", {" of ": 1.0}), ("9", {"9": 1.0})]
    assert score(says("2 of 9", places), pattern=r"(\d) of", **common) == pytest.approx(3.0)
    # Tokens that do not spell the text, and a place without a digit of the scale, are none.
    assert score(says("7", [("8", {"8": 1.0})]), **common) is None
    assert score(says("7.", [("7.", {"7.": 1.0})]), **common) is None


def test_a_server_without_logprobs_is_an_error_that_says_so():
    with serving(says("7")) as seen, pytest.raises(RewardServiceError) as error:
        chat(seen, "judge", scale=(1, 9), logprobs=True)(["p"], ["c"])
    assert "no chat completion with logprobs" in str(error.value) and "logprobs is false" in str(error.value)
    assert len(seen.bodies) == 1


@settings(max_examples=50, deadline=None)
@given(
    bounds=st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda own: own[0] < own[1]),
    logprobs=st.lists(st.floats(-50, 0.5) | st.just(1e9), min_size=10, max_size=10),
    place=st.integers(0, 9),
)
def test_an_expected_score_is_of_the_scale(bounds, logprobs, place):
    low, high = bounds
    digit = str(low + place % (high - low + 1))
    top = [{"token": str(own), "logprob": logprob} for own, logprob in enumerate(logprobs)]
    answer = completion(digit)
    answer["choices"][0]["logprobs"] = {
        "content": [{"token": digit, "logprob": logprobs[int(digit)], "top_logprobs": top}]
    }
    reward = get_reward("judge", model="m", scale=bounds, logprobs=True)
    reply, _ = read_reply(answer, True)
    assert low - 1e-9 <= reward._score(reward._parts(reply)) <= high + 1e-9


ASKS_TWO = "{prompt} {completion}\ncorrect: are the facts right?\npolite: is it friendly?\nReply with `name: number` for each."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("correct: 9\npolite: 3", 7.0),
        ("**Correct**: 9/10\n**polite**: **3**", 7.0),
        ('{"correct": 9, "polite": 3}', 7.0),
        ("correct: 1? no.\npolite: 3\ncorrect: 9", 7.0),
        ("incorrect: 9\npolite: 3", None),
        ("correct: 9", None),
        ("correct: 9\npolite: 11", None),
        ("9 3", None),
    ],
)
def test_several_questions_are_a_weighted_mean(text, expected):
    assert score(says(text), template=ASKS_TWO, questions={"correct": 2, "polite": 1}) == expected


def test_each_question_is_logged_and_may_have_probabilities():
    places = [("correct: ", {}), ("8", {"8": 0.5, "4": 0.5}), ("\npolite: ", {}), ("3", {"3": 1.0})]
    places = [(text, own or {text: 1.0}) for text, own in places]
    logged = {}
    with serving(says("correct: 8\npolite: 3", places)) as seen:
        reward = chat(
            seen, "judge", template=ASKS_TWO, questions={"correct": 1, "polite": 3}, scale=(0, 9), logprobs=True
        )
        assert reward(["p"] * 2, ["c", None], log_extra=logged.__setitem__) == [pytest.approx((6 + 9) / 4), None]
    assert logged == {"judge/correct": [pytest.approx(6.0), None], "judge/polite": [3.0, None]}


def test_a_schema_allows_the_whole_numbers_of_the_scale_and_nothing_else():
    with serving(says('{"score": 4}')) as seen:
        assert chat(seen, "judge", structured=True, scale=(0.5, 4))(["p"], ["c"]) == [4.0]
        chat(seen, "judge", structured=True, template=ASKS_TWO, questions={"correct": 1, "polite": 1})(["p"], ["c"])
    one, two = (body["response_format"] for body in seen.bodies)
    assert one["type"] == "json_schema" and one["json_schema"]["strict"] is True
    assert one["json_schema"]["schema"] == {
        "type": "object",
        "properties": {"score": {"type": "integer", "enum": [1, 2, 3, 4]}},
        "required": ["score"],
        "additionalProperties": False,
    }
    assert two["json_schema"]["schema"]["required"] == ["correct", "polite"]


def counts(exchange):
    """A judge that gives 1 to the first question, 2 to the second, and so on."""
    exchange.json(completion(str(exchange.number + 1)))


def test_a_question_is_asked_once_as_long_as_its_answer_is_kept():
    metrics = {}
    with serving(counts) as seen:
        reward = chat(seen, "judge", cache=2, concurrency=1)
        assert reward(["p"] * 3, ["a", "b", "a"], log_metric=metrics.__setitem__) == [1.0, 2.0, 1.0]
        assert metrics["judge/cached"] == pytest.approx(1 / 3) and metrics["judge/prompt_tokens"] == 42
        assert reward(["p"] * 2, ["a", "b"], log_metric=metrics.__setitem__) == [1.0, 2.0]
        assert (
            metrics["judge/cached"] == 1 and metrics["judge/completion_tokens"] == 0 and metrics["judge/latency"] != 0
        )
        # A third answer takes the place of the one that was used longest ago.
        assert reward(["p"], ["c"]) == [3.0] and reward(["p"] * 2, ["b", "a"]) == [2.0, 4.0]
        # Another question, model or picture is another one.
        assert chat(seen, "judge", cache=2, model="n")(["p"], ["b"]) == [5.0]
        # What is drawn at random, and where nothing is kept, is asked again.
        for fresh in ({"temperature": 1.0}, {"cache": 0}, {"temperature": None}):
            again = chat(seen, "judge", concurrency=1, scale=(0, 99), **fresh)
            before = len(seen.bodies)
            assert again(["p"] * 2, ["a", "a"]) == [before + 1.0, before + 2.0]


def test_a_call_that_failed_keeps_what_it_was_told():
    def second_fails(exchange):
        exchange.json(completion("4")) if "fine" in question(exchange.body) else exchange.json({}, 400)

    with serving(second_fails) as seen:
        reward = chat(seen, "judge", concurrency=1)
        with pytest.raises(RewardServiceError):
            reward(["p"] * 2, ["fine", "bad"])
        assert reward(["p"], ["fine"]) == [4.0] and len(seen.bodies) == 2


def test_a_file_keeps_answers_for_the_next_run(tmp_path):
    file = tmp_path / "deep" / "judge.jsonl"
    places = [("7", {"7": 0.5, "3": 0.5})]
    common = {"cache_file": str(file), "scale": (0, 9), "logprobs": True}
    with serving(says("7", places)) as seen:
        first = chat(seen, "judge", **common)
        assert first(["p"] * 2, ["a", "ü"]) == [5.0, 5.0] and len(seen.bodies) == 2
        assert chat(seen, "judge", **common)(["p"] * 2, ["ü", "a"]) == [5.0, 5.0] and len(seen.bodies) == 2
        # A line whose writing was interrupted is not there, and spoils none that comes after it.
        whole = file.read_text()
        for number, interrupted in enumerate((9, len(whole.splitlines()[-1]) - 4), 3):
            file.write_text(whole[:-interrupted])
            for _ in range(2):
                assert (
                    chat(seen, "judge", **common)(["p"] * 2, ["a", "ü"]) == [5.0, 5.0] and len(seen.bodies) == number
                )
        file.write_text("export PATH=\n")
        with pytest.raises(ValueError, match=r"judge: cache_file .*line 1, is no answer that was kept.*another name"):
            chat(seen, "judge", **common)(["p"], ["a"])
    assert [set(json.loads(line)) for line in whole.splitlines() if line] == [{"key", "reply"}] * 2
    with pytest.raises(ValueError, match=r"cache_file must be a path that ends in \.jsonl"):
        get_reward("judge", model="m", cache_file="~/.bashrc")


def test_a_reward_with_answers_can_be_pickled():
    with serving(counts) as seen:
        reward = chat(seen, "judge")
        reward(["p"], ["a"])
        assert pickle.loads(pickle.dumps(reward))(["p"], ["a"]) == [1.0] and len(seen.bodies) == 1


def test_ties_of_a_group_vanish():
    """Eight answers of a judge that says 7 to all, and is surer of some."""

    def surer(exchange):
        doubt = int(re.search(r"answer (\d)", question(exchange.body))[1]) / 100
        exchange.json(completion("7", [("7", {"7": 0.8 - doubt, "6": 0.2 + doubt})]))

    answers = [f"answer {number}" for number in range(8)]
    with serving(surer) as seen:
        plain = chat(seen, "judge", scale=(0, 9))(["p"] * 8, answers)
        soft = chat(seen, "judge", scale=(0, 9), logprobs=True)(["p"] * 8, answers)
    assert max(Counter(plain).values()) == 8 and max(Counter(soft).values()) == 1
    assert soft == sorted(soft, reverse=True)


def test_a_token_of_a_character_that_is_cut_does_not_move_the_place():
    tokens = tuple(Token(text, ((text, 0.0),)) for text in ("Note ", "\u2713 ", "8"))
    assert Reply("Note \u2713 8", False, tokens).token_of(7) is tokens[2]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"logprobs": True}, "scale must be two of the digits 0 to 9 with logprobs, such as [1, 5]"),
        ({"logprobs": True, "scale": (0.5, 2)}, "scale must be two of the digits"),
        ({"logprobs": 1}, "logprobs must be true or false"),
        ({"top_logprobs": 1}, "top_logprobs must be"),
        ({"structured": "yes"}, "structured must be"),
        ({"structured": True, "scale": (0, 1000)}, "scale must be one with 2 to 101 whole numbers"),
        ({"structured": True, "scale": (0.1, 0.9)}, "scale must be one with 2 to 101 whole numbers"),
        ({"questions": {}}, "questions must be names and their weights above 0"),
        ({"questions": {"polite": 0}, "template": "polite"}, "questions must be names and their weights above 0"),
        ({"questions": {"so polite": 1}, "template": "so polite"}, "questions must be names"),
        ({"questions": {"polite": 1}}, "questions has 'polite', and the template does not ask for that"),
        (
            {"questions": {"polite": 1}, "template": "polite", "pattern": r"(\d)"},
            "pattern must be None beside questions",
        ),
        ({"extra_body": {"response_format": {}}}, "extra_body must be a dict without the fields"),
        ({"cache": -1}, "cache must be"),
        ({"cache_file": 5}, "cache_file must be a path"),
    ],
)
def test_arguments_are_checked(arguments, part):
    with pytest.raises(ValueError, match=f"judge: {re.escape(part)}"):
        get_reward("judge", **{"model": "m", **arguments})
