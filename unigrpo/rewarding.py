"""Calling reward functions: TRL's protocol, sync or async, functions or reward models."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rewards import get_reward


RESERVED = ("prompt", "completion", "completion_ids", "task", "image", "images", "image_transform")
"""Dataset columns that reach a reward under another name, or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One sampled answer as rewards see it.

    The dataset row, the completion, its token ids, the task, and the RGB pictures that the prompt asks about.
    """

    row: dict[str, Any]
    completion: Any
    completion_ids: list[int]
    task: str
    images: list[Image.Image] | None = None

    @property
    def for_reward(self) -> Any:
        """Chat prompts get a one-message list, as in TRL; strings and images stay as they are."""
        if isinstance(self.row["prompt"], str) or not isinstance(self.completion, str):
            return self.completion
        return [{"role": "assistant", "content": self.completion}]


class ModelReward:
    """A sequence-classification model as a reward: logit 0 of prompt + completion, as in TRL."""

    def __init__(self, model: nn.Module, tokenizer, name: str) -> None:
        self.model, self.tokenizer, self.__name__ = model.eval(), tokenizer, name
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id

    def _text(self, prompt: Any, completion: Any) -> str:
        if isinstance(prompt, str):
            return prompt + completion
        return self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)

    @torch.no_grad()
    def __call__(self, prompts: list, completions: list, **_: Any) -> list[float | None]:
        is_text = [isinstance(c, str | list) for c in completions]
        texts = [self._text(p, c) for p, c, ok in zip(prompts, completions, is_text, strict=True) if ok]
        if not texts:
            return [None] * len(completions)
        batch = self.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, add_special_tokens=False)
        scores = iter(self.model(**batch.to(self.model.device)).logits[:, 0].float().tolist())
        return [next(scores) if ok else None for ok in is_text]


def resolve_reward(reward: str | nn.Module | Callable, processing_class=None) -> Callable:
    """A callable reward from a registry name, ``pkg.mod:attr``, a model id or path, a module, or a callable.

    Raises:
        ValueError: an unknown name, or a reward model without a tokenizer.
    """
    if isinstance(reward, str):
        if "/" not in reward or ":" in reward:
            return resolve_reward(get_reward(reward))
        model = AutoModelForSequenceClassification.from_pretrained(reward, num_labels=1)
        return ModelReward(model, processing_class or AutoTokenizer.from_pretrained(reward), reward.rsplit("/", 1)[-1])
    if isinstance(reward, type) and not issubclass(reward, nn.Module):
        # A reward class named without arguments: its defaults.
        reward = reward()
    if isinstance(reward, nn.Module):
        path = getattr(getattr(reward, "config", None), "name_or_path", "")
        if processing_class is None and not path:
            raise ValueError(
                f"the reward model {type(reward).__name__} needs its tokenizer in reward_processing_classes"
            )
        return ModelReward(reward, processing_class or AutoTokenizer.from_pretrained(path), path.rsplit("/", 1)[-1])
    if not callable(reward):
        raise ValueError(f"a reward must be a name, a module or a callable, got {type(reward).__name__}: {reward!r}")
    return reward


def reward_name(reward: Callable) -> str:
    """Function name, with partials unwrapped, or the class name."""
    while isinstance(reward, partial):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)


@dataclass(slots=True)
class RewardSet:
    """The rewards of a run.

    Attributes:
        functions: callables; names are made unique with a number.
        weights: one a function.
        columns: dataset columns that every call gets, also where no row of a batch has them.
        extras: per-answer columns that rewards handed to ``log_extra`` in the last call.
        metrics: scalars that rewards handed to ``log_metric`` in the last call, all calls of it.
    """

    functions: list[Callable]
    weights: list[float] | None = None
    columns: set[str] = field(default_factory=set)
    names: list[str] = field(init=False)
    extras: dict[str, list] = field(init=False, default_factory=dict)
    metrics: dict[str, list[float]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.functions:
            raise ValueError("reward_funcs is empty: give at least one reward, e.g. 'math_correctness'")
        if self.weights is None:
            self.weights = [1.0] * len(self.functions)
        if len(self.weights) != len(self.functions):
            raise ValueError(f"reward_weights has {len(self.weights)} values for {len(self.functions)} rewards")
        self.names = []
        for function in self.functions:
            base = name = reward_name(function)
            number = 1
            while name in self.names:
                number += 1
                name = f"{base}_{number}"
            self.names.append(name)

    def score(self, answers: list[Answer], trainer_state: Any = None) -> Tensor:
        """Raw rewards ``[B, F]`` fp32, NaN where a reward returned None.

        Raises:
            ValueError: a reward returned the wrong number of scores or something that is not a number.
        """
        self.extras, self.metrics = {}, {}
        if not answers:
            return torch.zeros(0, len(self.functions))
        arguments = self._arguments(answers, trainer_state)
        results = [function(**arguments) for function in self.functions]
        pending = [i for i, result in enumerate(results) if inspect.isawaitable(result)]
        for i, result in zip(pending, _run_together([results[i] for i in pending]), strict=True):
            results[i] = result
        columns = [self._column(name, result, len(answers)) for name, result in zip(self.names, results, strict=True)]
        return torch.tensor(columns, dtype=torch.float32).T.contiguous()

    def _arguments(self, answers: list[Answer], trainer_state: Any) -> dict[str, Any]:
        self.know_columns(*(answer.row for answer in answers))
        return {
            **{key: [answer.row.get(key) for answer in answers] for key in sorted(self.columns)},
            "images": [answer.images for answer in answers],
            "prompts": [answer.row["prompt"] for answer in answers],
            "completions": [answer.for_reward for answer in answers],
            "completion_ids": [answer.completion_ids for answer in answers],
            "task": [answer.task for answer in answers],
            "trainer_state": trainer_state,
            "log_extra": self._log_extra,
            "log_metric": self._log_metric,
        }

    def know_columns(self, *rows: dict[str, Any]) -> None:
        """The columns of ``rows`` reach the rewards from now on: a window of a mixed run may lack those of one task."""
        self.columns.update(key for row in rows for key in row if key not in RESERVED)

    def _log_extra(self, column: str, values: list) -> None:
        self.extras[column] = list(values)

    def _log_metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(name, []).append(float(value))

    def _column(self, name: str, result: Any, expected: int) -> list[float]:
        try:
            scores = result.tolist() if isinstance(result, Tensor) else list(result)
        except TypeError as error:
            raise ValueError(
                f"reward {name!r} must return a list of {expected} scores, got {type(result).__name__}"
            ) from error
        if len(scores) != expected:
            raise ValueError(f"reward {name!r} returned {len(scores)} scores for {expected} completions")
        try:
            return [math.nan if score is None else float(score) for score in scores]
        except (TypeError, ValueError) as error:
            raise ValueError(f"reward {name!r} returned something that is not a number or None: {error}") from error


def _run_together(awaitables: list) -> list:
    """Results of async rewards, run concurrently on their own event loop, so that a notebook's loop is left alone."""
    if not awaitables:
        return []

    async def gather() -> list:
        return await asyncio.gather(*awaitables)

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(lambda: asyncio.run(gather())).result()
