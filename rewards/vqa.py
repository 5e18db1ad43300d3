"""``vqa_score`` and ``soft_tifa``: how probable the right answers about a picture are for a model that sees it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from ._chat import ChatReward
from ._image_text import pair_of
from ._reply import Reply
from ._template import Template
from ._words import count_word, words


QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
"""VQAScore's question."""

ONE_WORD = "{question} Answer with one word."

MEANS = ("geometric", "arithmetic")


class VqaScore(ChatReward):
    """P(yes) / (P(yes) + P(no)) of the answer to "does this figure show it?"; range [0, 1].

    VQAScore (arXiv 2404.01291), asked of a vision model behind an OpenAI-compatible server that returns ``logprobs``, such as
    ``vllm serve``. Probabilities are those of the first word of the answer, summed over ways to write it ("Yes", " yes"), among its
    ``top_logprobs`` most probable tokens; what is not listed counts as 0.

    The picture and its text are those of ``clip_score``: a drawn completion with the column ``reward_prompt`` or the prompt, or a
    written one with the first of the row's images. None for other rows, and where neither word is listed.

    Args:
        template: the question, with ``{prompt}`` for the text.
        max_tokens: of the answer; more than 1 for a model that reasons, or begins with a blank.
        model, chat: as in ``ChatReward``.

    Raises:
        TypeError: without ``model``.
        ValueError: an argument is none of these.
    """

    __name__ = "vqa_score"

    def __init__(self, model: str, *, template: str = QUESTION, max_tokens: int | None = 1, **chat: Any) -> None:
        super().__init__(model, max_tokens=max_tokens, logprobs=True, **chat)
        self._template = Template(self.__name__, template)
        self._template.check({"prompt"})

    def __call__(
        self,
        prompts: list,
        completions: list,
        images: list | None = None,
        reward_prompt: list | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """One score a row. ``log_metric`` receives what ``judge`` logs.

        Raises:
            RewardServiceError: a row got no usable answer.
        """
        nothing = [None] * len(completions)
        rows = zip(prompts, completions, images or nothing, reward_prompt or nothing, strict=True)
        encoder, bodies = self._encoder(), {}
        for index, row in enumerate(rows):
            pair = pair_of(*row)
            picture = None if pair is None else encoder.value("images", index, pair.image)
            if picture is not None:
                bodies[index] = self._body(str(self._template.fill({"prompt": pair.text})), [picture])
        asking = self._replies(list(bodies.values()))
        scores = {index: _yes(reply) for index, reply in zip(bodies, asking.replies, strict=True)}
        self._log_asking(log_metric, asking, len(encoder.broken), list(scores.values()).count(None))
        return [scores.get(index) for index in range(len(completions))]


class SoftTifa(ChatReward):
    """The mean probability of the right answers to a row's questions about its drawn picture; range [0, 1].

    GenEval 2's Soft-TIFA (arXiv 2512.16853): the geometric mean estimates whether the whole prompt is shown (Soft-TIFA GM), the
    arithmetic mean how many of its parts are (Soft-TIFA AM). The column ``questions`` (GenEval 2: ``vqa_list``) holds pairs of a
    question and its answer, ``[["How many dogs are there?", "two"], ["Are they white?", "yes"]]``, or that as JSON.

    The probability of an answer is that of the first word, summed over ways to write it ("two", " Two", "2"), among its
    ``top_logprobs`` most probable tokens. An answer of several tokens counts where the model says it, with their product. What is
    not listed counts as 0.

    None where the completion is no picture, and where ``questions`` is None or empty.

    Args:
        mean: ``"geometric"`` or ``"arithmetic"``.
        template: what is asked, with ``{question}``.
        max_tokens: of an answer.
        model, chat: as in ``ChatReward``.

    Raises:
        TypeError: without ``model``.
        ValueError: an argument is none of these, or a row's questions are no such pairs.
    """

    __name__ = "soft_tifa"

    def __init__(
        self, model: str, *, mean: str = "geometric", template: str = ONE_WORD, max_tokens: int | None = 8, **chat: Any
    ) -> None:
        super().__init__(model, max_tokens=max_tokens, logprobs=True, **chat)
        self._check(mean in MEANS, "mean", mean, f"one of {MEANS}")
        self.mean = mean
        self._template = Template(self.__name__, template)
        self._template.check({"question"})

    def __call__(
        self,
        prompts: list,
        completions: list,
        questions: list,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """One score a row. ``log_metric`` receives what ``judge`` logs, where ``<name>/unparsable`` counts empty answers, and
        ``<name>/unlisted``: the share of questions whose right answer is not among the listed tokens.

        Raises:
            RewardServiceError: a question got no usable answer.
        """
        encoder, asked, bodies = self._encoder(), {}, []
        for index, (completion, given) in enumerate(zip(completions, questions, strict=True)):
            pairs = self._pairs(given, index) if isinstance(completion, Image.Image) else []
            picture = encoder.value("completions", index, completion) if pairs else None
            if picture is not None:
                asked[index] = [answer for _, answer in pairs]
                texts = [self._template.fill({"question": question}) for question, _ in pairs]
                bodies += [self._body(str(text), [picture]) for text in texts]
        asking = self._replies(bodies)

        scores, replies, listed = {}, iter(asking.replies), []
        for index, answers in asked.items():
            shares = [_probability(answer, next(replies)) for answer in answers]
            listed += [share > 0 for share in shares]
            scores[index] = _mean(shares, self.mean)
        empty = sum(not reply.first_words() for reply in asking.replies)
        self._log_asking(log_metric, asking, len(encoder.broken), empty)
        if log_metric is not None:
            log_metric(f"{self.__name__}/unlisted", 1 - sum(listed) / len(listed) if listed else math.nan)
        return [scores.get(index) for index in range(len(completions))]

    def _pairs(self, given: Any, index: int) -> list[tuple[str, str]]:
        """Questions and answers of a row."""
        try:
            own = json.loads(given) if isinstance(given, str) else given
            pairs = [_pair(one) for one in own or ()]
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{self.__name__}: questions of row {index} must be pairs of a question and an answer, such as "
                f'[["Is it red?", "yes"]], got {str(given)[:200]!r}'
            ) from None
        return pairs


def _pair(one: Any) -> tuple[str, str]:
    if not isinstance(one, list | tuple | Mapping):
        raise TypeError(one)
    question, answer = (one["question"], one["answer"]) if isinstance(one, Mapping) else one
    if isinstance(answer, bool):
        answer = "yes" if answer else "no"
    answer = answer if isinstance(answer, str) else str(answer) if isinstance(answer, int) else None
    if not isinstance(question, str) or not answer or not words(answer):
        raise ValueError(one)
    return question, answer


def _yes(reply: Reply) -> float | None:
    first = next(iter(reply.first_words()), None)
    if first is None:
        return None
    yes, no = (first.mass(lambda text, own=word: words(text) == own) for word in ("yes", "no"))
    return yes / (yes + no) if yes + no else None


def _probability(answer: str, reply: Reply) -> float:
    """Of ``answer`` as the first words of a reply."""
    tokens = reply.first_words()
    if not tokens:
        return 0.0
    probability = tokens[0].mass(lambda text: _same(text, answer))
    spelled = tokens[0].text
    for count, token in enumerate(tokens[1:], 2):
        spelled += token.text
        if token.text.strip() and _same(spelled, answer) and not _same(tokens[0].text, answer):
            return min(1.0, probability + math.exp(math.fsum(own.logprob for own in tokens[:count])))
    return probability


def _same(text: str, answer: str) -> bool:
    """Whether both are one word, or one number in digits or in a word."""
    return _plain(text) == _plain(answer) != ""


def _plain(text: str) -> str:
    count = count_word(text)
    return words(text) if count is None else str(count)


def _mean(shares: list[float], kind: str) -> float:
    if kind == "arithmetic":
        return math.fsum(shares) / len(shares)
    return math.exp(math.fsum(map(math.log, shares)) / len(shares)) if all(shares) else 0.0
