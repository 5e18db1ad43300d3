"""``pairwise_judge``: how often a judge prefers a row's completion to those of the other rows with its prompt."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from PIL import Image

from ._chat import ChatReward, pictures_of
from ._reply import Reply
from ._service import is_whole
from ._template import Template, prompt_text
from .text import completion_text


TEMPLATE = """\
Which response to the prompt is better, A or B?

Prompt:
{prompt}

Response A:
{first}

Response B:
{second}

Reply with the letter alone."""

SHOWN_FIRST, SHOWN_SECOND = "(the last attached image but one)", "(the last attached image)"
"""What ``{first}`` and ``{second}`` say where the completions are images."""

_OWN = ("prompt", "first", "second")
_WORTH = {"A": 1.0, "B": 0.0}
_DRESS = r"[ \t*_`\"'()\[\]{}<>.!]*"
_ALONE = re.compile(rf"(?:\A|\n){_DRESS}(?i:response )?{_DRESS}([AB]|(?i:tie)){_DRESS}\s*\Z")
"""The last line where it is a letter or "tie" alone, perhaps in brackets or bold."""
_CUE = (
    r"(?i:\b(?:answer|verdict|winner|better)(?: response)?(?:[\"'*_`]*\s*:| is\b:?)"
    r"|(?<!not )(?<!n't )(?<!n’t )\bprefer(?:s|red)?(?: response)?(?: is)?\b:?)"
)
_ENDS = r"(?=[\"'*_`)\]}]*(?:\s*\n|\W*\Z|[.!](?:\s|\Z)|,?\s+(?:over|to|because|since|as)\b))"
_NAMED = re.compile(rf"\[\[([AB])\]\]|{_CUE}(?:{_DRESS}|\s)(?i:(?:the )?response )?{_DRESS}([AB]){_ENDS}")
"""``[[A]]``, and a letter behind "answer:", "verdict:", "winner:", "better:" or "prefer"."""


class Entry(NamedTuple):
    """What is compared of a row: its prompt and the template's columns as text, its pictures, and its completion."""

    values: dict[str, Any]
    pictures: list[str]
    said: str | None
    drawn: str | None


class PairwiseJudge(ChatReward):
    """The share of comparisons with the other completions of its prompt that a completion wins; range [0, 1].

    Rows of a call belong together where prompt, input images and the columns of the template are equal: the group of a prompt.
    A group that is spread over several processes is compared in parts. Each pair is judged twice, the second time with A and B
    swapped, and counts as the mean of both, so a judge that always says A gives 0.5. Equal completions tie without being asked about.
    A group of G needs G (G - 1) questions, or ``2 rounds`` a row.

    The last line of a reply is its verdict where it is a letter or "tie" alone, such as ``**A**``. Or else it is what stands in
    ``[[A]]`` or behind "answer:", "verdict:", "winner:", "better:" or "prefer". A reply with both letters there has none, nor has
    one that was cut at ``max_tokens``.

    With ``logprobs`` a verdict is ``p(A) / (p(A) + p(B))`` at the letter's place; without, it is 1, 0, or 0.5 for "tie".
    None where a row has no other with its prompt, or is neither text nor image, and where no comparison of it has a verdict.

    Args:
        template: the question. ``{prompt}``, ``{first}``, ``{second}`` and ``{column}`` stand for their values.
        rounds: in round r a completion meets the one r rows on, in a circle. None: every pair meets once.
        logprobs: read probabilities. A server that returns none is an error.
        model, chat: as in ``ChatReward``.

    Raises:
        TypeError: without ``model``.
        ValueError: an argument is none of these.
    """

    __name__ = "pairwise_judge"

    def __init__(
        self, model: str, *, template: str = TEMPLATE, rounds: int | None = None, logprobs: bool = False, **chat: Any
    ) -> None:
        super().__init__(model, logprobs=logprobs, **chat)
        self._check(rounds is None or (is_whole(rounds) and rounds >= 1), "rounds", rounds, "1 or more, or None")
        self.rounds = rounds
        self._template = Template(self.__name__, template)
        if missing := {"first", "second"} - self._template.names:
            raise ValueError(
                f"{self.__name__}: template must have both {{first}} and {{second}}, and lacks {sorted(missing)}"
            )

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

        ``log_metric`` receives what ``judge`` logs, where ``<name>/unparsable`` counts answers without a verdict, and
        ``<name>/prefers_first``: the mean verdict for the completion that is shown first, 0.5 for a judge without a preference for a
        place.

        Raises:
            RewardServiceError: a comparison got no usable answer.
            ValueError: the template has a name that is no column.
        """
        columns = {name: values for name, values in columns.items() if isinstance(values, list | tuple)}
        self._template.check({*_OWN, *columns})
        wanted = [name for name in columns if name in self._template.names]
        images = [None] * len(completions) if images is None else images
        encoder, entries = self._encoder(), {}
        for index, (prompt, completion, pictures) in enumerate(zip(prompts, completions, images, strict=True)):
            drawn = isinstance(completion, Image.Image)
            said = None if drawn else completion_text(completion)
            values = {name: columns[name][index] for name in wanted} | {"prompt": prompt_text(prompt)}
            if (said is None and not drawn) or None in values.values():
                continue
            shown = [encoder.value("images", index, image) for image in pictures_of(pictures)]
            entries[index] = Entry(
                values, shown, said, encoder.value("completions", index, completion) if drawn else None
            )
        entries = {index: entry for index, entry in entries.items() if index not in encoder.broken}

        met = list(self._meetings(entries))
        told = [(a, b) for a, b in met if entries[a][2:] != entries[b][2:]]
        orders = [order for a, b in told for order in ((a, b), (b, a))]
        asking = self._replies([self._question(entries[a], entries[b]) for a, b in orders])
        verdicts = dict(zip(orders, map(self._verdict, asking.replies), strict=True))

        won: dict[int, list[float]] = {index: [] for index in entries}
        for a, b in met:
            first, second = (verdicts.get(order, 0.5) for order in ((a, b), (b, a)))
            if first is not None and second is not None:
                won[a].append((first + 1 - second) / 2)
                won[b].append((second + 1 - first) / 2)
        self._log_asking(log_metric, asking, len(encoder.broken), list(verdicts.values()).count(None))
        if log_metric is not None:
            given = [verdict for verdict in verdicts.values() if verdict is not None]
            log_metric(f"{self.__name__}/prefers_first", math.fsum(given) / len(given) if given else math.nan)
        rates = {index: math.fsum(own) / len(own) if own else None for index, own in won.items()}
        return [rates.get(index) for index in range(len(completions))]

    def _meetings(self, entries: dict[int, Entry]) -> Iterator[tuple[int, int]]:
        """Pairs of rows that are compared, each once."""
        groups: dict[str, list[int]] = {}
        for index, entry in entries.items():
            key = json.dumps([entry.values, entry.pictures, entry.said is None], sort_keys=True, default=str)
            groups.setdefault(key, []).append(index)
        for group in groups.values():
            size = len(group)
            seen: set[frozenset[int]] = set()
            for distance in range(1, min(size - 1, self.rounds or size) + 1):
                for place in range(size):
                    pair = group[place], group[(place + distance) % size]
                    if frozenset(pair) not in seen:
                        seen.add(frozenset(pair))
                        yield pair

    def _question(self, first: Entry, second: Entry) -> dict[str, Any]:
        said = {"first": first.said, "second": second.said}
        if first.said is None:
            said = {"first": SHOWN_FIRST, "second": SHOWN_SECOND}
        drawn = [picture for picture in (first.drawn, second.drawn) if picture is not None]
        text = self._template.fill(first.values | said)
        return self._body(str(text), [*first.pictures, *drawn])

    def _verdict(self, reply: Reply) -> float | None:
        """How much better the first is, in [0, 1]; None where the answer does not say."""
        found = None if reply.cut else _found(reply.said())
        if found is None:
            return None
        word = found[found.lastindex]
        if not self._logprobs or word not in _WORTH:
            return _WORTH.get(word, 0.5)
        token = reply.token_of(found.start(found.lastindex))
        if token is None:
            return None
        first, second = (token.mass(lambda text, own=letter: text.strip() == own) for letter in _WORTH)
        return first / (first + second) if first + second else None


def _found(said: str) -> re.Match | None:
    """The verdict of a text: its last line if that is one alone, or else what it names as one, unless it names both."""
    alone, named = _ALONE.search(said), list(_NAMED.finditer(said))
    if alone or len({own[own.lastindex] for own in named}) != 1:
        return alone
    return named[-1]
