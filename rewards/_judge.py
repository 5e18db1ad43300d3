"""A language model as a judge: an OpenAI-compatible server is asked for a number, one request a row."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from PIL import Image

from ._chat import ChatReward, pictures_of
from ._reply import Reply, Token
from ._service import is_number
from ._template import Template, prompt_text
from .text import completion_text


TEMPLATE = """\
How good is the response to the prompt? Give it a number from {low}, the worst, to {high}, the best.

Prompt:
{prompt}

Response:
{completion}

Reply with the number alone."""

SHOWN_IMAGE = "(the last attached image)"
"""What ``{completion}`` says where the completion is an image."""

MOST_CHOICES = 101
"""Whole numbers of a scale that a schema lists."""

_OWN = ("prompt", "completion", "low", "high")
_SIGNED = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(rf"(?<![\w.]){_SIGNED}")


class Found(NamedTuple):
    """A number in a text: its characters, and where they start."""

    number: str
    start: int


class JudgeReward(ChatReward):
    """The number that a judge model gives a row; range ``scale``, both ends included.

    The server is one with ``/chat/completions`` as OpenAI has it, such as ``vllm serve`` or ``transformers serve``.
    None where the completion is neither text nor an image, a column of the template is None for the row, or the judge's
    answer has no number of the scale or was cut at ``max_tokens``.

    Of the answer counts what stands behind the last ``</think>``: the last match of ``pattern``, or else the last
    number, where "7/10" and "7 out of 10" are 7 on a scale that ends at 10. A number off the scale is no score.

    With ``logprobs`` the score is the mean of the digits of the scale under the judge's own probabilities at the place of that
    number, ``sum(v p(v)) / sum(p(v))`` (G-Eval, arXiv 2303.16634), so that answers of a group rarely tie.

    Args:
        template: the question. ``{prompt}``, ``{completion}``, ``{low}``, ``{high}`` and ``{column}`` for a column of
            the dataset stand for their values, which are not looked into for more; ``{{word}}`` is ``{word}``.
        pattern: a regular expression with one group, the number.
        scale: least and greatest number. For ``logprobs`` both are digits, so that each number is one token.
        questions: where the template asks for several numbers, the name of each and its weight, above 0. The judge answers
            ``name: number``, a line each, and the score is the weighted mean. A row without one of them is None.
        logprobs: see above. A server that returns none is an error.
        structured: ask the server for JSON that a schema allows, ``response_format``: an answer then has its whole numbers.
        model, base_url, system, max_tokens, temperature, top_logprobs, extra_body, cache, cache_file: as in ``ChatReward``, also
            timeout, deadline, api_key_env, retries, backoff, concurrency, label. A judge that reasons needs more ``max_tokens``.

    Raises:
        TypeError: without ``model``.
        ValueError: an argument is none of these.
    """

    __name__ = "judge"

    def __init__(
        self,
        model: str,
        *,
        template: str = TEMPLATE,
        pattern: str | None = None,
        scale: tuple[float, float] = (0, 10),
        questions: Mapping[str, float] | None = None,
        logprobs: bool = False,
        structured: bool = False,
        **chat: Any,
    ) -> None:
        super().__init__(model, logprobs=logprobs, **chat)
        right = (
            isinstance(scale, list | tuple) and len(scale) == 2 and all(map(is_number, scale)) and scale[0] < scale[1]
        )
        self._check(right, "scale", scale, "two numbers, the least and the greatest, such as [0, 10]")
        digits = all(bound in range(10) for bound in scale)
        must_be = "two of the digits 0 to 9 with logprobs, such as [1, 5], so that every number is one token"
        self._check(digits or not logprobs, "scale", scale, must_be)
        self.scale = (float(scale[0]), float(scale[1]))
        self._template = Template(self.__name__, template)
        self._weights = self._weighed(questions)
        self._check(not (questions and pattern), "pattern", pattern, "None beside questions, which are found by name")
        self._patterns = {name: _named(name) for name in self._weights} or {
            "score": _NUMBER if pattern is None else self._compiled(pattern)
        }
        self._plain = pattern is None and not questions
        self._check(isinstance(structured, bool), "structured", structured, "true or false")
        if structured:
            self._request |= {"response_format": self._schema()}

    def _weighed(self, questions: Any) -> dict[str, float]:
        """Weights that sum to 1; empty where there is one question without a name."""
        must_be = "names and their weights above 0, such as {correct: 2, polite: 1}, or None"
        self._check(
            questions is None or (isinstance(questions, Mapping) and questions), "questions", questions, must_be
        )
        own = dict(questions or {})
        right = all(isinstance(name, str) and re.fullmatch(r"\w+", name) for name in own)
        right = right and all(is_number(weight) and weight > 0 for weight in own.values())
        self._check(right, "questions", questions, must_be)
        if unasked := [name for name in own if name not in self._template.text]:
            raise ValueError(
                f"{self.__name__}: questions has {', '.join(map(repr, unasked))}, and the template does not ask for that: "
                "name each question in the template, and have it answered by `name: number`"
            )
        total = math.fsum(own.values())
        return {name: weight / total for name, weight in own.items()}

    def _compiled(self, pattern: Any) -> re.Pattern:
        must_be = r"a regular expression with one group, the number, such as 'Score: (\d+)'"
        try:
            compiled = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"{self.__name__}: pattern must be {must_be}, got {pattern!r} ({error})") from None
        self._check(isinstance(pattern, str) and compiled.groups == 1, "pattern", pattern, must_be)
        return compiled

    def _schema(self) -> dict[str, Any]:
        """The ``response_format`` that allows a whole number of the scale for each question."""
        numbers = [
            *range(math.ceil(self.scale[0]), min(math.floor(self.scale[1]), math.ceil(self.scale[0]) + 200) + 1)
        ]
        right = 2 <= len(numbers) <= MOST_CHOICES
        must_be = f"one with 2 to {MOST_CHOICES} whole numbers where structured is true, such as [0, 10]"
        self._check(right, "scale", list(self.scale), must_be)
        named = {name: {"type": "integer", "enum": numbers} for name in self._patterns}
        schema = {"type": "object", "properties": named, "required": [*named], "additionalProperties": False}
        return {"type": "json_schema", "json_schema": {"name": self.__name__, "schema": schema, "strict": True}}

    def __call__(
        self,
        prompts: list,
        completions: list,
        completion_ids: list | None = None,
        images: list | None = None,
        trainer_state: Any = None,
        log_extra: Callable[[str, list], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One score a row.

        ``log_metric`` receives ``<name>/unparsable`` (rows whose answer is no score), ``<name>/failed`` (rows with an
        image that cannot be encoded), ``<name>/retries``, ``<name>/seconds`` of the call, ``<name>/latency`` (mean seconds of a
        request), ``<name>/cached`` (share of questions that were not asked again), ``<name>/prompt_tokens`` and
        ``<name>/completion_tokens``. ``log_extra`` receives a column ``<name>/<question>`` for each of ``questions``.

        Raises:
            RewardServiceError: a row got no usable answer.
            ValueError: the template has a name that is no column.
        """
        columns = {name: values for name, values in columns.items() if isinstance(values, list | tuple)}
        self._template.check({*_OWN, *columns})
        images = [None] * len(completions) if images is None else images
        encoder, bodies = self._encoder(), {}
        for index, (prompt, completion, pictures) in enumerate(zip(prompts, completions, images, strict=True)):
            text = self._asked(prompt, completion, {name: values[index] for name, values in columns.items()})
            if text is None:
                continue
            drawn = completion if isinstance(completion, Image.Image) else None
            shown = [encoder.value("images", index, image) for image in pictures_of(pictures, drawn)]
            if index not in encoder.broken:
                bodies[index] = self._body(text, shown)
        asking = self._replies(list(bodies.values()))

        parts = {index: self._parts(reply) for index, reply in zip(bodies, asking.replies, strict=True)}
        scores = {index: self._score(own) for index, own in parts.items()}
        self._log_asking(log_metric, asking, len(encoder.broken), list(scores.values()).count(None))
        if log_extra is not None:
            for name in self._weights:
                log_extra(f"{self.__name__}/{name}", [parts.get(i, {}).get(name) for i in range(len(completions))])
        return [scores.get(index) for index in range(len(completions))]

    def _asked(self, prompt: Any, completion: Any, row: dict[str, Any]) -> str | None:
        """The question about one row; None where the row is not judged."""
        said = SHOWN_IMAGE if isinstance(completion, Image.Image) else completion_text(completion)
        low, high = (f"{bound:g}" for bound in self.scale)
        own = {"prompt": prompt_text(prompt), "completion": said, "low": low, "high": high}
        return None if said is None else self._template.fill(row | own)

    def _score(self, parts: dict[str, float | None]) -> float | None:
        """The weighted mean; None where a question has no number."""
        if None in parts.values():
            return None
        return math.fsum(weight * parts[name] for name, weight in (self._weights or {"score": 1.0}).items())

    def _parts(self, reply: Reply) -> dict[str, float | None]:
        """The number of each question in a judge's answer; None where it has none, or none of the scale."""
        # The last number of a text that was cut can be any number of its reasoning, or half of one.
        said = "" if reply.cut else reply.said()
        return {name: self._number(reply, self._last(pattern, said)) for name, pattern in self._patterns.items()}

    def _last(self, pattern: re.Pattern, said: str) -> Found | None:
        """The last match of ``pattern``, its group if it has one."""
        matches = list(pattern.finditer(said))
        high = f"{self.scale[1]:g}"
        # "7/10" on a scale that ends at 10 says 7.
        while matches and self._plain and len(matches) > 1 and matches[-1][0] == high:
            between = said[: matches[-1].start()]
            if not re.search(r"\d\**\s*(?:/|out of)\s*$", between):
                break
            matches.pop()
        return Found(matches[-1][pattern.groups], matches[-1].start(pattern.groups)) if matches else None

    def _number(self, reply: Reply, found: Found | None) -> float | None:
        try:
            number = float(found.number) if found else math.nan
        except (TypeError, ValueError):  # The group of a pattern that took no part, or is no number.
            return None
        if not self.scale[0] <= number <= self.scale[1]:
            return None
        return self._expected(reply.token_of(found.start)) if found and self._logprobs else number

    def _expected(self, token: Token | None) -> float | None:
        """The mean of the scale's digits under the probabilities at a token's place; None where none of them is listed."""
        if token is None:
            return None
        digits = [str(digit) for digit in range(int(self.scale[0]), int(self.scale[1]) + 1)]
        masses = {digit: token.mass(lambda text, own=digit: text.strip() == own) for digit in digits}
        total = math.fsum(masses.values())
        return math.fsum(int(digit) * mass for digit, mass in masses.items()) / total if total else None


def _named(name: str) -> re.Pattern:
    """Finds the number behind ``name:``, also in JSON and in bold."""
    return re.compile(rf"""(?i)(?<!\w){name}["'*`]*\s*[:=]["'*`\s]*({_SIGNED})""")
