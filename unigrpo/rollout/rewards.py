"""Calling reward functions: TRL's protocol, sync or async, functions or reward models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ..models.loading import load_classifier, load_config, load_processor
from ..rewards import get_reward
from .bounded_call import Outcome, outcome_of, outcomes_together
from .reward_faults import Fault, FaultLog, failed_call
from .reward_values import CallLog, as_list, as_scores, own_copy, state_copy


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
    """A sequence-classification model as a reward: logit 0 of prompt + completion, as in TRL.

    Attributes:
        offload: whether the model is on the CPU between calls.
    """

    def __init__(self, model: nn.Module, tokenizer, name: str) -> None:
        self.model, self.tokenizer, self.__name__ = model.eval(), tokenizer, name
        self.offload, self._device = False, model.device
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id

    def to(self, device: torch.device | str) -> ModelReward:
        """Moves the model, or where it is offloaded only its work."""
        self._device = torch.device(device)
        self.model.to("cpu" if self.offload else device)
        return self

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """The model where it computes, and back on the CPU where it is offloaded."""
        if not self.offload:
            yield
            return
        self.model.to(self._device)
        try:
            yield
        finally:
            self.model.to("cpu")

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
        with self._at_work():
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
        model = load_classifier(reward)
        return ModelReward(model, processing_class or load_processor(AutoTokenizer, reward), reward.rsplit("/", 1)[-1])
    if isinstance(reward, type) and not issubclass(reward, nn.Module):
        # A reward class named without arguments: its defaults.
        reward = reward()
    if isinstance(reward, nn.Module):
        path = getattr(getattr(reward, "config", None), "name_or_path", "")
        if processing_class is None and not path:
            raise ValueError(
                f"the reward model {type(reward).__name__} needs its tokenizer in reward_processing_classes"
            )
        return ModelReward(reward, processing_class or load_processor(AutoTokenizer, path), path.rsplit("/", 1)[-1])
    if not callable(reward):
        raise ValueError(f"a reward must be a name, a module or a callable, got {type(reward).__name__}: {reward!r}")
    return reward


def without_weights(reward: Any) -> tuple[nn.Module, Callable[[], Any]] | None:
    """A reward's model on the meta device and a call of one batch, to count what they take; None for one without a model.

    Of the model behind a path only the weights are counted: it scores all answers at once.

    Raises:
        OSError: the model is not reachable.
        ValueError: only loading it would tell.
    """
    if isinstance(reward, ModelReward):
        config = reward.model.config
    elif isinstance(reward, str) and "/" in reward and ":" not in reward:
        config = load_config(reward, num_labels=1)
    else:
        own = getattr(reward, "without_weights", None)
        return None if own is None else own()
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    return model.to(config.dtype or torch.float32), lambda: None


def offload(rewards: list[Callable], on: bool) -> None:
    """Whether rewards that hold a model, those with an attribute ``offload``, keep it on the CPU between their calls."""
    for reward in rewards:
        reward = getattr(reward, "reward", reward)
        if hasattr(reward, "offload"):
            reward.offload = on


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
        on_error: what a fault does: ``"raise"`` a ``RewardError``, or ``"none"``, see ``score``.
        timeout: seconds for one call of one reward; None = no bound. ``bounded_call`` says how calls are ended.
        extras: per-answer columns that rewards handed to ``log_extra`` in the last call.
        metrics: scalars that rewards handed to ``log_metric`` in the last call, all calls of it.
        lost: ``[F]`` bool, the rewards that failed as a whole in the last call.
        faults: counts what went wrong, until somebody takes the counts.
        unscored: training prompts in a row without a score from any reward.
    """

    functions: list[Callable]
    weights: list[float] | None = None
    columns: set[str] = field(default_factory=set)
    on_error: str = "raise"
    timeout: float | None = None
    names: list[str] = field(init=False)
    extras: dict[str, list] = field(init=False, default_factory=dict)
    metrics: dict[str, list[float]] = field(init=False, default_factory=dict)
    lost: Tensor = field(init=False)
    faults: FaultLog = field(init=False)
    unscored: int = field(init=False, default=0)

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
        self.lost, self.faults = torch.zeros(len(self.names), dtype=torch.bool), FaultLog(self.names)

    def score(self, answers: list[Answer], trainer_state: Any = None) -> Tensor:
        """Raw rewards ``[B, F]`` fp32, NaN where a reward returned None.

        Each reward gets copies of everything, so that what it changes reaches neither another one nor the run.
        With ``on_error`` "none", a reward that failed as a whole (it raised, was overdue, or returned something else than a
        list of one score an answer) is NaN in all rows, and the others count. A row with a score that is no finite number
        is NaN in all columns: with its other rewards alone it would be compared with answers that have all of theirs. What
        is logged wrongly is left out.

        Raises:
            RewardError: a fault, where ``on_error`` is "raise"; memory that ran out is one, on a GPU too.
        """
        self.extras, self.metrics = {}, {}
        self.lost = torch.zeros(len(self.functions), dtype=torch.bool)
        if not answers:
            return torch.zeros(0, len(self.functions))
        self.know_columns(*(answer.row for answer in answers))
        logs = [CallLog(len(answers)) for _ in self.functions]
        outcomes = self._outcomes(answers, trainer_state, logs)
        scores, faulty = torch.full((len(answers), len(self.functions)), torch.nan), []
        for place, (outcome, log) in enumerate(zip(outcomes, logs, strict=True)):
            if outcome.error is not None:
                self._lose(place, outcome.error, answers)
            self._take_log(place, log, answers)
            if outcome.error is not None:
                continue
            column, wrong = as_scores(outcome.value, self.weights[place])
            scores[:, place] = torch.tensor(column)
            if wrong:
                rows = list(wrong)
                more = f" (and {len(rows) - 1} more like that)" if len(rows) > 1 else ""
                self._fault(place, Fault(kind="score", text=wrong[rows[0]] + more, rows=rows), answers)
                faulty += rows
        scores[faulty] = torch.nan
        return scores

    def _outcomes(self, answers: list[Answer], trainer_state: Any, logs: list[CallLog]) -> list[Outcome]:
        """What each reward returned, as a list: the functions one after the other, then coroutines together."""
        outcomes: list[Outcome] = []
        for place, (function, log) in enumerate(zip(self.functions, logs, strict=True)):
            call = partial(_called, function, self._arguments(answers, trainer_state, log), len(answers))
            outcomes.append(outcome_of(call, self.timeout))
            if outcomes[-1].error is not None and self.on_error == "raise":
                for outcome in outcomes:
                    # Coroutines that nobody will wait for.
                    getattr(outcome.value, "close", lambda: None)()
                self._lose(place, outcomes[-1].error, answers)
        pending = [place for place, outcome in enumerate(outcomes) if inspect.isawaitable(outcome.value)]
        awaitables = [_awaited(outcomes[place].value, len(answers)) for place in pending]
        for place, outcome in zip(pending, outcomes_together(awaitables, self.timeout), strict=True):
            outcomes[place] = outcome
        return outcomes

    def _arguments(self, answers: list[Answer], trainer_state: Any, log: CallLog) -> dict[str, Any]:
        seen: dict[int, Any] = {}
        arguments = {
            **{key: [answer.row.get(key) for answer in answers] for key in sorted(self.columns)},
            "images": [answer.images for answer in answers],
            "prompts": [answer.row["prompt"] for answer in answers],
            "completions": [answer.for_reward for answer in answers],
            "completion_ids": [answer.completion_ids for answer in answers],
            "task": [answer.task for answer in answers],
        }
        return {
            **{key: own_copy(values, seen) for key, values in arguments.items()},
            "trainer_state": state_copy(trainer_state),
            "log_extra": log.log_extra,
            "log_metric": log.log_metric,
        }

    def know_columns(self, *rows: dict[str, Any]) -> None:
        """The columns of ``rows`` reach the rewards from now on: a window of a mixed run may lack those of one task."""
        self.columns.update(key for row in rows for key in row if key not in RESERVED)

    def _fault(self, place: int, fault: Fault, answers: list[Answer]) -> None:
        self.faults.add(place, fault, [answer.row["prompt"] for answer in answers], self.on_error)

    def _lose(self, place: int, error: BaseException, answers: list[Answer]) -> None:
        """A reward failed as a whole. One that is for a single task lost the rows of that task."""
        task = getattr(self.functions[place], "task", None)
        rows = [i for i, answer in enumerate(answers) if answer.task == task] or list(range(len(answers)))
        self.lost[place] = True
        self._fault(place, failed_call(error, self.timeout, rows), answers)

    def _take_log(self, place: int, log: CallLog, answers: list[Answer]) -> None:
        """What one call logged."""
        for text in list(log.faults):
            self._fault(place, Fault(kind="log", text=text, rows=[0]), answers)
        self.extras |= dict(log.extras)
        for name, values in list(log.metrics.items()):
            self.metrics.setdefault(name, []).extend(values)


def _called(function: Callable, arguments: dict[str, Any], expected: int) -> Any:
    """The function's scores as a list, or what is to be awaited for them. Reading an iterator is part of the call."""
    result = function(**arguments)
    return result if inspect.isawaitable(result) else as_list(result, expected)


async def _awaited(awaitable: Any, expected: int) -> list:
    return as_list(await awaitable, expected)
