"""What a chat completion of an OpenAI-compatible server says, and how probable its words were."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ._exchange import Failure
from ._service import is_number


THOUGHT_ENDS = "</think>"

NO_LOGPROBS = (
    "Ask a server that returns `logprobs`, such as `vllm serve`; a judge works without them where logprobs is false."
)


class Token(NamedTuple):
    """A token of an answer: its text, and the most probable tokens of its place with their log-probabilities.

    ``options`` has the token itself too, whether or not the server counts it among the most probable ones.
    """

    text: str
    options: tuple[tuple[str, float], ...]

    @property
    def logprob(self) -> float:
        """Of the token itself."""
        return dict(self.options)[self.text]

    def mass(self, means: Callable[[str], bool]) -> float:
        """The probability of all listed tokens whose text ``means`` accepts; range [0, 1]."""
        return min(1.0, math.fsum(math.exp(logprob) for text, logprob in self.options if means(text)))


class Reply(NamedTuple):
    """The answer of a model; ``text`` None where there is none.

    ``cut``: it ended at ``max_tokens``. ``tokens``: its tokens; None where the server was not asked for ``logprobs``.
    """

    text: str | None
    cut: bool
    tokens: tuple[Token, ...] | None

    def said(self) -> str:
        """What stands behind the last ``</think>``."""
        return (self.text or "").rpartition(THOUGHT_ENDS)[2]

    def token_of(self, start: int) -> Token | None:
        """The token with the character at ``start`` of ``said()``; None where the tokens do not spell the text."""
        spelled, text = "".join(token.text for token in self.tokens or ()), self.said()
        # Behind it there may be the token that ends the answer; before it a thought that the server keeps apart.
        place = spelled.rfind(text)
        if place < 0 or not text:
            return None
        end = 0
        for token in self.tokens or ():
            end += len(token.text)
            if end > place + start:
                return token
        return None

    def first_words(self) -> tuple[Token, ...]:
        """The tokens from the first one on that is no white space, behind the last ``</think>`` if there is one."""
        tokens = list(self.tokens or ())
        ends = [place for place, token in enumerate(tokens) if THOUGHT_ENDS in token.text]
        behind = tokens[ends[-1] + 1 :] if ends else tokens
        first = next((place for place, token in enumerate(behind) if token.text.strip()), len(behind))
        return tuple(behind[first:])


class Usage(NamedTuple):
    """Tokens that a server counted, read and written; 0 where it counts none."""

    prompt: int
    completion: int


def read_reply(answer: Any, logprobs: bool) -> tuple[Reply, Usage]:
    """The answer in a chat completion's JSON; ``logprobs``: with its tokens.

    Raises:
        Failure: it is no chat completion, or has no tokens.
    """
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        if text is not None and not isinstance(text, str):
            raise TypeError
        usage = answer.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        cut = choice.get("finish_reason") == "length"
    except (KeyError, IndexError, TypeError, AttributeError):
        cure = "base_url must be that of a server with OpenAI's /v1/chat/completions, up to and with /v1."
        raise _not("no chat completion", answer, cure) from None
    tokens = _tokens(choice, answer) if logprobs else None
    return Reply(text, cut, tokens), Usage(*(count if isinstance(count, int) else 0 for count in counts))


def _tokens(choice: dict, answer: Any) -> tuple[Token, ...]:
    try:
        return tuple(_token(own) for own in choice["logprobs"]["content"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _not("no chat completion with logprobs", answer, NO_LOGPROBS) from None


def _token(own: dict) -> Token:
    """One entry of ``logprobs.content``."""
    options = {_spelled(one): _logprob(one["logprob"]) for one in [*(own.get("top_logprobs") or ()), own]}
    return Token(_spelled(own), tuple(options.items()))


def _logprob(value: Any) -> float:
    """Servers say -9999 for an impossible token, and round up to just above 0."""
    if not is_number(value):
        raise TypeError(value)
    return min(float(value), 0.0)


def _spelled(own: dict) -> str:
    if not isinstance(own["token"], str):
        raise TypeError
    return own["token"]


def _not(what: str, answer: Any, cure: str) -> Failure:
    return Failure(f"status 200, but the answer is {what}", cure=cure, body=json.dumps(answer).encode())
