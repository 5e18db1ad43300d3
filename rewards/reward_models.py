"""``reward_model_server``: a reward model behind ``vllm serve MODEL --runner pooling``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from PIL import Image

from ._chat import pictures_of
from ._exchange import Failure
from ._json_values import Encoder
from ._service import ServiceReward, is_number, is_whole
from .text import completion_text


ENDPOINTS = ("classify", "pooling")


class RewardModelServer(ServiceReward):
    """What a reward model says of prompt and completion as a conversation; range any number, or that of ``activation``.

    One request a row, to vLLM's ``/classify`` for a sequence classifier, or to ``/pooling`` for a model that has a value for every
    token, of which the last one's counts. The server writes the conversation with the model's own chat template. A row's images
    are shown before its prompt, and a drawn completion is the assistant's picture.

    None where the completion is neither text nor an image.

    Args:
        model: name of the model as the server knows it.
        base_url: of the server; a ``/v1`` at its end is left out.
        endpoint: ``"classify"`` or ``"pooling"``.
        output: which number counts, where the model has several: 0 is the first label, -1 the last.
        activation: whether the server applies the sigmoid or softmax of the model; None leaves it to the server, which does.
        extra_body: further fields of the request.
        timeout, deadline, api_key_env, service: as in ``ServiceReward``, also retries, backoff, concurrency, label.

    Raises:
        TypeError: without ``model``.
        ValueError: an argument is none of these.
    """

    __name__ = "reward_model_server"

    def __init__(
        self,
        model: str,
        *,
        base_url: str = "http://127.0.0.1:8000",
        endpoint: str = "classify",
        output: int = 0,
        activation: bool | None = False,
        extra_body: dict[str, Any] | None = None,
        timeout: float = 60.0,
        deadline: float = 480.0,
        api_key_env: str | None = None,
        **service: Any,
    ) -> None:
        base = self._checked_url("base_url", base_url, "http://127.0.0.1:8000")
        self._check("?" not in base, "base_url", base.partition("?")[0] + "?...", "a URL without a query")
        self._check(endpoint in ENDPOINTS, "endpoint", endpoint, f"one of {ENDPOINTS}")
        url = f"{base.rstrip('/').removesuffix('/v1')}/{endpoint}"
        super().__init__(url, timeout=timeout, deadline=deadline, api_key_env=api_key_env, **service)
        self._check(isinstance(model, str) and model, "model", model, "the name of a model that the server has")
        self._check(is_whole(output), "output", output, "a whole number, such as 0")
        self._check(activation in (None, True, False), "activation", activation, "true, false or None")
        own = {"model": model, "use_activation": activation}
        self.output = output
        self._request = self._fixed(own, extra_body, ("messages", "input"))

    def __call__(
        self,
        prompts: list,
        completions: list,
        images: list | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """One score a row. ``log_metric`` receives ``<name>/failed``, ``<name>/retries``, ``<name>/seconds``, ``<name>/latency``.

        Raises:
            RewardServiceError: a row got no number.
        """
        images = [None] * len(completions) if images is None else images
        encoder = Encoder(self.__name__, lambda png: f"data:image/png;base64,{png}")
        bodies = {}
        for index, row in enumerate(zip(prompts, completions, images, strict=True)):
            messages = _conversation(*row, lambda image, at=index: encoder.value("images", at, image))
            if messages is not None and index not in encoder.broken:
                bodies[index] = self._request | {"messages": messages}
        asked = self._ask(list(bodies.values()), lambda answer, index: self._number(answer))
        self._log(log_metric, asked, len(encoder.broken))
        if log_metric is not None:
            log_metric(f"{self.__name__}/latency", asked.latency)
        scores = dict(zip(bodies, asked.results, strict=True))
        return [scores.get(index) for index in range(len(completions))]

    def _number(self, answer: Any) -> float:
        """The number in an answer of either endpoint.

        Raises:
            Failure: there is none.
        """
        try:
            first = answer["data"][0]
            values = first["probs"] if "probs" in first else first["data"]
            while isinstance(values[-1], list):
                values = values[-1]
            number = values[self.output]
        except (KeyError, IndexError, TypeError):
            number = None
        if not is_number(number):
            cure = (
                f"The server must be one of vLLM with --runner pooling, and its model must have output {self.output}."
            )
            raise Failure("status 200, but the answer has no such number", cure=cure, body=json.dumps(answer).encode())
        return float(number)


def _conversation(
    prompt: Any, completion: Any, images: Any, encode: Callable[[Image.Image], Any]
) -> list[dict] | None:
    """Prompt and completion as messages; None where the completion is neither text nor an image."""
    said = completion_text(completion)
    if said is None and not isinstance(completion, Image.Image):
        return None
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(own) for own in prompt]
    shown = [_picture(encode(image)) for image in pictures_of(images)]
    asked = next((own for own in messages if own.get("role") == "user"), None)
    if shown and asked is not None:
        given = asked["content"]
        text = (
            [{"type": "text", "text": given}]
            if isinstance(given, str)
            else [p for p in given if p.get("type") == "text"]
        )
        asked["content"] = [*shown, *text]
    answer = said if said is not None else [_picture(encode(completion))]
    return [*messages, {"role": "assistant", "content": answer}]


def _picture(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}
