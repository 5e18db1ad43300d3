"""``pairwise_judge``: win rates within a group, positions swapped."""

from __future__ import annotations

import itertools
import re

import pytest
from PIL import Image

from unigrpo.rewards import get_reward
from unigrpo.testing import check_reward

from ..support.chat_servers import chat, completion, pictures, question, says
from ..support.images import picture
from ..support.reward_rows import answers
from ..support.servers import in_turn, no_proxy, serving  # noqa: F401


def shown(body):
    """What is said in A and in B."""
    return re.findall(r"Response [AB]:\n(.*)\n", question(body))


def longer(exchange):
    """Prefers the longer response, and A where both are as long."""
    first, second = map(len, shown(exchange.body))
    exchange.json(completion("A" if first >= second else "B"))


@pytest.mark.smoke
def test_a_win_rate_is_the_share_of_the_others_that_a_completion_beats():
    with serving(longer) as seen:
        reward = chat(seen, "pairwise_judge")
        prompts, said = ["p", "q", "p", "p", "q", "alone"], ["1", "22", "333", "22", "1", "1"]
        assert reward(prompts, said) == [0.0, 1.0, 1.0, 0.5, 0.0, None]
    # Every pair of a group, in both orders, and nothing across groups.
    asked = sorted(tuple(shown(body)) for body in seen.bodies)
    assert asked == sorted([*itertools.permutations(["1", "333", "22"], 2), *itertools.permutations(["22", "1"], 2)])


def test_a_judge_that_always_says_a_gives_a_half_to_all():
    metrics = {}
    with serving(says("A")) as seen:
        assert chat(seen, "pairwise_judge")(["p"] * 4, list("abcd"), log_metric=metrics.__setitem__) == [0.5] * 4
    assert metrics["pairwise_judge/prefers_first"] == 1.0 and metrics["pairwise_judge/unparsable"] == 0


def test_probabilities_of_both_letters_and_both_orders():
    def unsure(exchange):
        first, _ = shown(exchange.body)
        share = {"good": 0.6, "poor": 0.3}[first]
        exchange.json(completion("A", [("A", {"A": share / 2, " A": share / 2, "B": 0.9 - share, "C": 0.1})]))

    with serving(unsure) as seen:
        scores = chat(seen, "pairwise_judge", logprobs=True)(["p"] * 2, ["good", "poor"])
    good_first, poor_first = 0.6 / 0.9, 0.3 / 0.9
    assert scores == pytest.approx([(good_first + 1 - poor_first) / 2, (poor_first + 1 - good_first) / 2])


def test_equal_completions_tie_and_are_not_asked_about():
    with serving(longer) as seen:
        assert chat(seen, "pairwise_judge")(["p"] * 3, ["a", "a", "bb"]) == [0.25, 0.25, 1.0]
        assert len(seen.bodies) == 2, "a against bb is one question in each order, whoever said a"
        assert chat(seen, "pairwise_judge", cache=0)(["p"] * 3, ["a", "a", "bb"]) == [0.25, 0.25, 1.0]
        assert len(seen.bodies) == 2 + 4


@pytest.mark.parametrize(("rounds", "questions"), [(1, 12), (2, 24), (3, 30), (9, 30), (None, 30)])
def test_rounds_bound_the_questions(rounds, questions):
    said = ["x" * length for length in (3, 1, 6, 2, 5, 4)]
    with serving(longer) as seen:
        scores = chat(seen, "pairwise_judge", rounds=rounds)(["p"] * 6, said)
    assert len(seen.bodies) == questions
    if questions == 30:
        assert scores == [0.4, 0.0, 1.0, 0.2, 0.8, 0.6]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", [0.0, 1.0]),
        ("<think>A</think>Response B is better than A. Verdict: **B**", [0.0, 1.0]),
        ("I prefer B. A is too long.", [0.0, 1.0]),
        ("A is long.\n\n**Response B**.", [0.0, 1.0]),
        ("[[B]], as A is dull", [0.0, 1.0]),
        ('{"why": "A is dull", "verdict": "B"}', [0.0, 1.0]),
        ("The better response is B over A.", [0.0, 1.0]),
        ("**Tie.**", [0.5, 0.5]),
        ("It is a tie between A and B.", None),
        ("Response A is better than Response B.", None),
        ("A is better: B is too long.", None),
        ("I do not prefer B", None),
        ("[[A]] if A is better, [[B]] if not", None),
        ("Both are good", None),
        ("", None),
        ("ABBA", None),
    ],
)
def test_the_verdict_of_an_answer(text, expected):
    swap = str.maketrans("AB", "BA")
    other = text.translate(swap) if expected == [0.0, 1.0] else text
    metrics = {}
    with serving(in_turn(says(text), says(other))) as seen:
        scores = chat(seen, "pairwise_judge", concurrency=1)(["p"] * 2, ["a", "b"], log_metric=metrics.__setitem__)
    assert scores == (expected or [None, None]) and metrics["pairwise_judge/unparsable"] == (0 if expected else 2)


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_cut_reply_has_no_verdict(logprobs):
    def cut(exchange):
        answer = completion("A", [("A", {"A": 0.9, "B": 0.1})])
        answer["choices"][0]["finish_reason"] = "length"
        exchange.json(answer)

    with serving(cut) as seen:
        assert chat(seen, "pairwise_judge", logprobs=logprobs)(["p"] * 2, ["a", "b"]) == [None, None]


def test_a_pair_with_half_a_verdict_does_not_count():
    def third_is_unclear(exchange):
        exchange.json(completion("?")) if shown(exchange.body)[0] == "333" else longer(exchange)

    with serving(third_is_unclear) as seen:
        assert chat(seen, "pairwise_judge")(["p"] * 3, ["1", "22", "333"]) == [0.0, 1.0, None]


def test_drawn_completions_are_shown_behind_the_pictures_of_the_prompt():
    given, red, blue = picture(0), Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    with serving(says("A")) as seen:
        reward = chat(seen, "pairwise_judge", concurrency=1)
        assert reward(["p"] * 3, [red, blue, "text"], images=[[given]] * 3) == [0.5, 0.5, None]
        assert reward(["p"] * 2, [red, blue], images=[[given], None]) == [None, None], "of different pictures"
    first, second = map(pictures, seen.bodies)
    assert len(first) == 3 and first == [second[0], second[2], second[1]]
    assert shown(seen.bodies[0]) == ["(the last attached image but one)", "(the last attached image)"]


def test_columns_of_the_template_divide_groups():
    with serving(longer) as seen:
        template = "{prompt} {hint}\nResponse A:\n{first}\n\nResponse B:\n{second}\n\n"
        reward = chat(seen, "pairwise_judge", template=template)
        assert reward(["p"] * 4, ["1", "22", "1", "22"], hint=["x", "x", "y", None]) == [0.0, 1.0, None, None]
        assert len(seen.bodies) == 2


def test_the_protocol_is_kept():
    with serving(longer) as seen:
        rows = answers("1", "22", "333")
        scores = check_reward(chat(seen, "pairwise_judge"), rows, range=(0, 1), deterministic=False)
    assert scores == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"rounds": 0}, "rounds must be 1 or more"),
        ({"template": "{first} {prompt}"}, "must have both {first} and {second}, and lacks ['second']"),
    ],
)
def test_arguments_are_checked(arguments, part):
    with pytest.raises(ValueError, match=f"pairwise_judge: .*{re.escape(part)}"):
        get_reward("pairwise_judge", model="m", **arguments)
