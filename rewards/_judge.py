"""A language model as a judge: an OpenAI-compatible server is asked for a number, one request a row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from ._exchange import Failure
from ._json_values import Encoder
from ._service import ServiceReward, is_number, is_whole
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

_OWN = ("prompt", "completion", "low", "high")
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?|\.\d+)")


class JudgeReward(ServiceReward):
    """The number that a judge model gives a row; range ``scale``, both ends included.

    The server is one with ``/chat/completions`` as OpenAI has it, such as ``vllm serve`` or ``transformers serve``.
    None where the completion is neither text nor an image, a column of the template is None for the row, or the judge's
    answer has no number of the scale or was cut at ``max_tokens``.

    Of the answer counts what stands behind the last ``</think>``: the last match of ``pattern``, or else the last
    number, where "7/10" and "7 out of 10" are 7 on a scale that ends at 10. A number off the scale is no score.

    Args:
        model: name of the model as the server knows it.
        base_url: of the server, up to and with ``/v1``.
        template: the question. ``{prompt}``, ``{completion}``, ``{low}``, ``{high}`` and ``{column}`` for a column of
            the dataset stand for their values, which are not looked into for more; ``{{word}}`` is ``{word}``.
        pattern: a regular expression with one group, the number.
        scale: least and greatest number.
        system: a system message.
        max_tokens: of the answer; more for a judge that reasons. None leaves it to the server.
        temperature: of sampling. None leaves it to the server.
        extra_body: further fields of the request, e.g. ``{"chat_template_kwargs": {"enable_thinking": False}}``.
        timeout, deadline, api_key_env, service: as in ``ServiceReward``, also retries, backoff, concurrency, label.

    Raises:
        TypeError: without ``model``.
        ValueError: an argument is none of these.
    """

    __name__ = "judge"

    def __init__(
        self,
        model: str,
        *,
        base_url: str = "http://127.0.0.1:8000/v1",
        template: str = TEMPLATE,
        pattern: str | None = None,
        scale: tuple[float, float] = (0, 10),
        system: str | None = None,
        max_tokens: int | None = 256,
        temperature: float | None = 0.0,
        extra_body: dict[str, Any] | None = None,
        timeout: float = 60.0,
        deadline: float = 480.0,
        api_key_env: str | None = "OPENAI_API_KEY",
        **service: Any,
    ) -> None:
        base = self._checked_url("base_url", base_url, "http://127.0.0.1:8000/v1")
        self._check("?" not in base, "base_url", base.partition("?")[0] + "?...", "a URL without a query")
        url = base.rstrip("/") + "/chat/completions"
        super().__init__(url, timeout=timeout, deadline=deadline, api_key_env=api_key_env, **service)
        self._check(isinstance(model, str) and model, "model", model, "the name of a model that the server has")
        self._check(system is None or isinstance(system, str), "system", system, "a text or None")
        right = max_tokens is None or (is_whole(max_tokens) and max_tokens >= 1)
        self._check(right, "max_tokens", max_tokens, "a whole number of at least 1, or None")
        right = temperature is None or (is_number(temperature) and temperature >= 0)
        self._check(right, "temperature", temperature, "a number, 0 or more, or None")
        right = (
            isinstance(scale, list | tuple) and len(scale) == 2 and all(map(is_number, scale)) and scale[0] < scale[1]
        )
        self._check(right, "scale", scale, "two numbers, the least and the greatest, such as [0, 10]")
        self.scale = (float(scale[0]), float(scale[1]))
        self._pattern = None if pattern is None else self._compiled(pattern)
        self._template = Template(self.__name__, template)
        self._request = self._fixed(model, max_tokens, temperature, extra_body)
        self._system = [] if system is None else [{"role": "system", "content": system}]

    def _compiled(self, pattern: Any) -> re.Pattern:
        must_be = r"a regular expression with one group, the number, such as 'Score: (\d+)'"
        try:
            compiled = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"{self.__name__}: pattern must be {must_be}, got {pattern!r} ({error})") from None
        self._check(isinstance(pattern, str) and compiled.groups == 1, "pattern", pattern, must_be)
        return compiled

    def _fixed(self, model: str, max_tokens: int | None, temperature: float | None, extra: Any) -> dict[str, Any]:
        """What every request says."""
        own = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
        taken = {"messages", "stream", "n", *own}
        right = extra is None or (isinstance(extra, Mapping) and not taken & set(extra))
        self._check(right, "extra_body", extra, f"a dict without the fields {sorted(taken)}, or None")
        try:
            json.dumps(extra, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.__name__}: extra_body must be JSON ({error})") from None
        return {name: value for name, value in own.items() if value is not None} | dict(extra or {})

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
        image that cannot be encoded), ``<name>/retries`` and ``<name>/seconds``.

        Raises:
            RewardServiceError: a row got no usable answer.
            ValueError: the template has a name that is no column.
        """
        columns = {name: values for name, values in columns.items() if isinstance(values, list | tuple)}
        self._template.check({*_OWN, *columns})
        images = [None] * len(completions) if images is None else images
        encoder = Encoder(self.__name__, lambda png: f"data:image/png;base64,{png}")
        bodies = {}
        for index, (prompt, completion, pictures) in enumerate(zip(prompts, completions, images, strict=True)):
            row = {name: values[index] for name, values in columns.items() if name in self._template.names}
            body = self._body(
                prompt, completion, pictures, row, lambda image, at=index: encoder.value("images", at, image)
            )
            if body is not None and index not in encoder.broken:
                bodies[index] = body
        asked = self._ask(list(bodies.values()), lambda answer, index: self._score(_content(answer)))

        scores = dict(zip(bodies, asked.results, strict=True))
        self._log(log_metric, asked, len(encoder.broken))
        if log_metric is not None:
            log_metric(f"{self.__name__}/unparsable", float(list(scores.values()).count(None)))
        return [scores.get(index) for index in range(len(completions))]

    def _body(
        self, prompt: Any, completion: Any, images: Any, row: dict[str, Any], encode: Callable[[Image.Image], Any]
    ) -> dict[str, Any] | None:
        """The request for one row; None where the row is not judged."""
        drawn = isinstance(completion, Image.Image)
        said = SHOWN_IMAGE if drawn else completion_text(completion)
        low, high = (f"{bound:g}" for bound in self.scale)
        own = {"prompt": prompt_text(prompt), "completion": said, "low": low, "high": high}
        text = None if said is None else self._template.fill(row | own)
        if text is None:
            return None
        images = images if isinstance(images, list | tuple) else [images]
        pictures = [image for image in [*images, completion if drawn else None] if image is not None]
        parts = [{"type": "image_url", "image_url": {"url": encode(image)}} for image in pictures]
        # Servers of models without sight take a plain string only.
        content = [*parts, {"type": "text", "text": text}] if parts else text
        return self._request | {"messages": [*self._system, {"role": "user", "content": content}]}

    def _score(self, answer: str | None) -> float | None:
        """The number in a judge's answer; None where it has none, or none of the scale."""
        if answer is None:
            return None
        text = answer.rpartition("</think>")[2]
        if self._pattern is None:
            high = re.escape(f"{self.scale[1]:g}")
            text = re.sub(rf"(?<=\d)\**\s*(?:/|out of)\s*{high}(?![\d.]*\d)", "", text)
        found = (self._pattern or _NUMBER).findall(text)
        try:
            number = float(found[-1])
        except (IndexError, ValueError):
            return None
        return number if self.scale[0] <= number <= self.scale[1] else None


def _content(answer: Any) -> str | None:
    """The text of a chat completion; None where there is none or it was cut.

    Raises:
        Failure: it is no chat completion.
    """
    try:
        choice = answer["choices"][0]
        content = choice["message"]["content"]
        if content is not None and not isinstance(content, str):
            raise TypeError
    except (KeyError, IndexError, TypeError):
        cure = "base_url must be that of a server with OpenAI's /v1/chat/completions, up to and with /v1."
        raise Failure(
            "status 200, but the answer is no chat completion", cure=cure, body=json.dumps(answer).encode()
        ) from None
    # The last number of a text that was cut can be any number of its reasoning, or half of one.
    return None if choice.get("finish_reason") == "length" else content
