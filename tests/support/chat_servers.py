"""Answers of a chat model, as an OpenAI-compatible server writes them, with the probabilities of their tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from unigrpo.rewards import get_reward

from .servers import Exchange, Seen


Place = tuple[str, dict[str, float]]
"""A token, and probabilities of tokens at its place."""


def chat(seen: Seen, name: str, **arguments: Any) -> Any:
    """The reward of that name, which asks there, at once again after a failure."""
    return get_reward(
        name, **{"model": "m", "base_url": f"{seen.url}/v1", "backoff": 0.0, "timeout": 30.0, **arguments}
    )


def completion(text: str | None, places: Sequence[Place] | None = None, finish_reason: str = "stop") -> dict[str, Any]:
    """A chat completion; ``places`` are its tokens."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    if places is not None:
        choice["logprobs"] = {"content": [_entry(*place) for place in places]}
    return {"object": "chat.completion", "choices": [choice], "usage": {"prompt_tokens": 21, "completion_tokens": 2}}


def _entry(token: str, probabilities: dict[str, float]) -> dict[str, Any]:
    top = [{"token": own, "logprob": math.log(p) if p else -9999.0} for own, p in probabilities.items()]
    # As servers do: the token of the answer has its own entry, whether or not it is among the first.
    return {"token": token, "logprob": math.log(probabilities.get(token, 1e-4)), "top_logprobs": top}


def word(probabilities: dict[str, float]) -> dict[str, Any]:
    """A completion of one token: the most probable."""
    best = max(probabilities, key=probabilities.__getitem__)
    return completion(best, [(best, probabilities)], "length")


def says(
    text: str | None, places: Sequence[Place] | None = None, finish_reason: str = "stop"
) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.json(completion(text, places, finish_reason))


def question(body: dict[str, Any]) -> str:
    """The text of the last message."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def pictures(body: dict[str, Any]) -> list[str]:
    """The data URLs of the last message."""
    content = body["messages"][-1]["content"]
    return [] if isinstance(content, str) else [part["image_url"]["url"] for part in content[:-1]]
