"""Rewards from a service of one's own: rows as JSON over HTTP, one number a row back."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

from ._exchange import Failure
from ._json_values import Encoder
from ._metrics import together
from ._service import ServiceReward, is_number, is_whole
from .text import completion_text


class RemoteReward(ServiceReward):
    """The rewards that an HTTP service gives; range any finite number, as the service says. None where it says null.

    A request is a POST of one JSON object of lists with one item a row::

        {"prompts": [...], "completions": [...], "task": [...], "images": [...], "solution": [...]}

    A prompt is a string or a list of messages; a completion is a string, also that of a chat, or an image; ``images``
    are lists of images, and there if any row has some, like ``task``. An image is ``{"type": "image", "png": "<PNG
    file in base64>"}``. Every other item is a column of the dataset. The answer is ``{"rewards": [0.5, null, ...]}``:
    a number, or null for "does not apply", a row. A row with an image that cannot be encoded is not sent: None. An answer may also
    have ``metrics``, numbers by name, and ``columns``, lists of one value a row, which are logged here. ``unigrpo serve-rewards`` is
    such a service.

    Args:
        url: where the rows are posted, ``http://...`` or ``https://...``.
        batch_size: rows of one request, more where neighbours have one prompt: a group is never cut, as a service may compare its
            rows. None: all rows of a call.
        columns: dataset columns that are sent; ``completion_ids`` may be one of them. None: all of the dataset's.
        retries: as in ``ServiceReward``; the default outlasts a restart of half a minute.
        api_key_env, service: as in ``ServiceReward``, also timeout, deadline, retries, backoff, concurrency, label.

    Raises:
        TypeError: without ``url``.
        ValueError: an argument is none of these.
    """

    __name__ = "remote"

    def __init__(
        self,
        url: str,
        *,
        batch_size: int | None = None,
        columns: list[str] | None = None,
        retries: int = 6,
        api_key_env: str | None = None,
        **service: Any,
    ) -> None:
        url = self._checked_url("url", url, "http://127.0.0.1:8000/score")
        super().__init__(url, retries=retries, api_key_env=api_key_env, **service)
        sized = batch_size is None or (is_whole(batch_size) and batch_size >= 1)
        self._check(sized, "batch_size", batch_size, "a whole number of at least 1, or None")
        named = columns is None or (
            isinstance(columns, list | tuple) and all(isinstance(name, str) for name in columns)
        )
        self._check(named, "columns", columns, "a list of column names such as ['solution'], or None")
        self.batch_size, self.columns = batch_size, columns

    def __call__(
        self,
        prompts: list,
        completions: list,
        completion_ids: list | None = None,
        trainer_state: Any = None,
        log_extra: Callable[[str, list], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One score a row.

        ``log_metric`` receives ``<name>/failed`` (rows with an image that cannot be encoded), ``<name>/retries``
        (repeated attempts), ``<name>/seconds`` and the service's metrics; ``log_extra`` its columns.

        Raises:
            RewardServiceError: a request got no usable answer.
            ValueError: a column is not there, or holds what JSON cannot say.
        """
        encoder = Encoder(self.__name__, lambda png: {"type": "image", "png": png})
        sent = self._sent(prompts, completions, {**columns, "completion_ids": completion_ids})
        table = {name: encoder.column(name, values) for name, values in sent.items()}
        rows = [index for index in range(len(completions)) if index not in encoder.broken]
        batches = _batches(rows, table["prompts"], self.batch_size or max(1, len(rows)))
        bodies = [{name: [values[i] for i in batch] for name, values in table.items()} for batch in batches]
        asked = self._ask(bodies, lambda answer, index: _read(answer, len(batches[index])))

        scores: dict[int, float | None] = {}
        extras: dict[str, dict[int, Any]] = {}
        for batch, answer in zip(batches, asked.results, strict=True):
            scores |= dict(zip(batch, answer.rewards, strict=True))
            for name, values in answer.columns.items():
                extras.setdefault(name, {}).update(zip(batch, values, strict=True))
        own = self._own_metrics(asked, len(encoder.broken))
        # A service may bear the name of a reward whose metrics it sends: counts of both add up.
        served = [(answer.metrics, len(batch)) for batch, answer in zip(batches, asked.results, strict=True)]
        for name, value in together([*served, (own, 1)]).items() if log_metric is not None else ():
            log_metric(name, value)
        for name, values in extras.items() if log_extra is not None else ():
            log_extra(name, [values.get(index) for index in range(len(completions))])
        return [scores.get(index) for index in range(len(completions))]

    def _sent(self, prompts: list, completions: list, columns: dict[str, Any]) -> dict[str, list]:
        """What goes to the service, one list a name."""
        columns = {
            name: values
            for name, values in columns.items()
            if isinstance(values, list | tuple) and len(values) == len(completions)
        }
        own = {name: columns.pop(name, []) for name in ("task", "images")}
        sent = {
            "prompts": prompts,
            "completions": [
                completion if (text := completion_text(completion)) is None else text for completion in completions
            ],
        } | {name: values for name, values in own.items() if any(value is not None for value in values)}
        chosen = [name for name in columns if name != "completion_ids"] if self.columns is None else self.columns
        if missing := [name for name in chosen if name not in columns]:
            there = ", ".join(sorted(set(columns) - {"completion_ids"})) or "none"
            raise ValueError(f"{self.__name__}: columns {missing} are not in the dataset; its columns are: {there}")
        return sent | {name: columns[name] for name in chosen}


def _batches(rows: list[int], prompts: list, size: int) -> list[list[int]]:
    """``rows`` in order, up to ``size`` together; neighbours with one prompt stay together, however many they are."""
    batches: list[list[int]] = []
    for _, group in groupby(rows, key=lambda row: prompts[row]):
        own = list(group)
        if batches and len(batches[-1]) + len(own) <= size:
            batches[-1] += own
        else:
            batches.append(own)
    return batches


class _Answer(NamedTuple):
    """What a service says of some rows."""

    rewards: list[float | None]
    metrics: dict[str, float]
    columns: dict[str, list]


def _read(answer: Any, rows: int) -> _Answer:
    """What an answer holds; of the metrics and columns what is of the right form.

    Raises:
        Failure: it is not what was agreed.
    """
    scores = answer.get("rewards") if isinstance(answer, dict) else None
    agreed = f'status 200, but the answer must be {{"rewards": [...]}} with {rows} numbers or nulls, and '
    cure = "rewards/README.md says what a service receives and returns."
    if not isinstance(scores, list):
        raise Failure(f"{agreed}is another thing", cure=cure, body=json.dumps(answer).encode())
    if len(scores) != rows:
        raise Failure(f"{agreed}has {len(scores)}", cure=cure)
    for index, score in enumerate(scores):
        if score is not None and not is_number(score):
            raise Failure(f"{agreed}item {index} is not one", cure=cure, body=json.dumps(score).encode())
    metrics, columns = (own if isinstance(own := answer.get(name), dict) else {} for name in ("metrics", "columns"))
    return _Answer(
        rewards=[None if score is None else float(score) for score in scores],
        metrics={name: float(value) for name, value in metrics.items() if is_number(value)},
        columns={name: own for name, own in columns.items() if isinstance(own, list) and len(own) == rows},
    )
