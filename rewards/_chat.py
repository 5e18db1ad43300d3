"""What rewards that ask a chat model have in common: the request, pictures, a cache, the count of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ._answer_cache import AnswerCache
from ._json_values import Encoder
from ._reply import Reply, Usage, read_reply
from ._service import Asked, ServiceReward, is_number, is_whole


class Asking(NamedTuple):
    """Replies to some requests in their order; how many requests there were, how many of them the cache knew; and the cost."""

    replies: list[Reply]
    known: int
    asked: Asked
    usage: Usage


class ChatReward(ServiceReward):
    """A reward that asks an OpenAI-compatible server at ``/chat/completions``.

    At ``temperature`` 0 a question that was asked before is not asked again, in the call or later: its answer is kept under
    the SHA-256 of the request, which holds the model, the texts and the pictures.

    Args:
        model: name of the model as the server knows it.
        base_url: of the server, up to and with ``/v1``.
        system: a system message.
        max_tokens: of the answer. None leaves it to the server.
        temperature: of sampling. None leaves it to the server.
        top_logprobs: most probable tokens of a place that are asked for, where probabilities are read. OpenAI and vLLM give 20
            at most, unless vLLM is started with more ``--max-logprobs``.
        extra_body: further fields of the request, e.g. ``{"chat_template_kwargs": {"enable_thinking": False}}``.
        cache: answers that are kept in memory; 0: none.
        cache_file: a ``.jsonl`` file in which they are kept too, for the next run.
        timeout, deadline, api_key_env, service: as in ``ServiceReward``, also retries, backoff, concurrency, label.

    Raises:
        TypeError: without ``model``.
        ValueError: an argument is none of these.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str = "http://127.0.0.1:8000/v1",
        system: str | None = None,
        max_tokens: int | None = 256,
        temperature: float | None = 0.0,
        logprobs: bool = False,
        top_logprobs: int = 20,
        extra_body: dict[str, Any] | None = None,
        cache: int = 10_000,
        cache_file: str | None = None,
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
        self._check(isinstance(logprobs, bool), "logprobs", logprobs, "true or false")
        right = is_whole(top_logprobs) and top_logprobs >= 2
        self._check(right, "top_logprobs", top_logprobs, "a whole number of at least 2, such as 20")
        self._check(is_whole(cache) and cache >= 0, "cache", cache, "a whole number, 0 or more")
        right = cache_file is None or isinstance(cache_file, str)
        self._check(right, "cache_file", cache_file, "a path that ends in .jsonl, or None")
        self._logprobs = logprobs
        # What is drawn at random is not to be the same every time.
        self._cache = AnswerCache(self.__name__, cache if temperature == 0 else 0, cache_file)
        own = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
        own |= {"logprobs": True, "top_logprobs": top_logprobs} if logprobs else {}
        self._request = self._fixed(
            own, extra_body, ("messages", "stream", "n", "response_format", "logprobs", "top_logprobs")
        )
        self._system = [] if system is None else [{"role": "system", "content": system}]

    def _encoder(self) -> Encoder:
        """Pictures as PNG data URLs."""
        return Encoder(self.__name__, lambda png: f"data:image/png;base64,{png}")

    def _body(self, text: str, pictures: list[str]) -> dict[str, Any]:
        """The request that shows ``pictures``, data URLs, and then asks ``text``."""
        parts = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
        # Servers of models without sight take a plain string only.
        content = [*parts, {"type": "text", "text": text}] if parts else text
        return self._request | {"messages": [*self._system, {"role": "user", "content": content}]}

    def _replies(self, bodies: list[dict[str, Any]]) -> Asking:
        """The replies to ``bodies``. Each is kept as it comes, so that a call that fails asks less when it is repeated.

        Raises:
            RewardServiceError: a request got no usable answer.
        """
        cached = self._cache.size > 0
        keys = [self._cache.key(self.url, body) if cached else str(place) for place, body in enumerate(bodies)]
        known = {key: reply for key in keys if (reply := self._cache.get(key)) is not None}
        places = {key: place for place, key in enumerate(keys) if key not in known}
        names = list(places)

        def read(answer: Any, index: int) -> tuple[Reply, Usage]:
            reply, usage = read_reply(answer, self._logprobs)
            self._cache.put(names[index], reply)
            return reply, usage

        asked = self._ask([bodies[place] for place in places.values()], read)
        found = known | {key: reply for key, (reply, _) in zip(names, asked.results, strict=True)}
        usage = Usage(*(sum(own[field] for _, own in asked.results) for field in range(len(Usage._fields))))
        return Asking([found[key] for key in keys], len(keys) - len(names), asked, usage)

    def _log_asking(
        self, log_metric: Callable[[str, float], None] | None, asking: Asking, failed: int, unparsable: int
    ) -> None:
        """``<name>/failed``, ``unparsable``, ``retries``, ``seconds``, ``latency``, ``cached`` and both counts of tokens."""
        if log_metric is None:
            return
        self._log(log_metric, asking.asked, failed)
        count = len(asking.replies)
        more = {
            "unparsable": float(unparsable),
            "latency": asking.asked.latency,
            "cached": asking.known / count if count else math.nan,
            "prompt_tokens": float(asking.usage.prompt),
            "completion_tokens": float(asking.usage.completion),
        }
        for name, value in more.items():
            log_metric(f"{self.__name__}/{name}", value)


def pictures_of(images: Any, completion: Any = None) -> list[Any]:
    """The pictures of a row: its input images, then a completion that is one."""
    images = images if isinstance(images, list | tuple) else [images]
    return [image for image in [*images, completion] if image is not None]
