"""Calling reward functions: TRL's protocol, sync or async, functions or reward models."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ..models.loading import load_classifier, load_config, load_processor
from ..models.processing import render_chat
from ..rewards import get_reward
from ..types import Sample
from .bounded_call import outcome_of, outcomes_together
from .reward_arguments import as_messages, reads_messages, taken
from .reward_faults import Fault, described, error_of, failed_call
from .reward_values import CallLog, as_list, as_scores, own_copy, state_copy


RESERVED = ("prompt", "completion", "completion_ids", "task", "image", "images", "image_transform")
"""Dataset columns that reach a reward under another name, or not at all."""


UNREADABLE = "/unparsable_gold"
"""End of the metric by which a reward says how many solutions it could not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What the rewards say of B answers.

    Attributes:
        values: ``[B, F]`` fp32 raw rewards, NaN where a reward does not apply.
        lost: ``[F]`` bool, the rewards that failed as a whole.
        faults: ``[F, 2]`` int64: answers that a fault left without their score, with one for each wrong log; and calls that
            were overdue.
        unreadable: ``[F]`` int64: answers whose solution the reward could not read, by its metric ``.../unparsable_gold``.
        extras: per-answer columns that rewards handed to ``log_extra``.
        metrics: scalars that rewards handed to ``log_metric``, all calls of it.
    """

    values: Tensor
    lost: Tensor
    faults: Tensor
    unreadable: Tensor
    extras: dict[str, list] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def none(cls, answers: int, rewards: int) -> Scores:
        """No score, nothing wrong and nothing logged yet."""
        return cls(
            values=torch.full((answers, rewards), torch.nan),
            lost=torch.zeros(rewards, dtype=torch.bool),
            faults=torch.zeros(rewards, 2, dtype=torch.int64),
            unreadable=torch.zeros(rewards, dtype=torch.int64),
        )


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
        return render_chat(self.tokenizer, [*prompt, *completion])

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
        golds: by the place of a reward, how many solutions of this run it could not read, and how many answers it scored.
    """

    functions: list[Callable]
    weights: list[float] | None = None
    columns: set[str] = field(default_factory=set)
    on_error: str = "raise"
    timeout: float | None = None
    names: list[str] = field(init=False)
    golds: dict[int, tuple[int, int]] = field(init=False, default_factory=dict)
    _warned: set[tuple[str, str]] = field(init=False, default_factory=set)

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

    def score(self, samples: list[Sample], trainer_state: Any = None) -> Scores:
        """The scores of ``samples``, NaN where a reward returned None.

        Each reward gets copies of everything, so that what it changes reaches neither another one nor the run.
        With ``on_error`` "none", a reward that failed as a whole (it raised, was overdue, or returned something else than a
        list of one score an answer) is NaN for all answers, and the others count. One with a score that is no finite number
        is NaN in all columns: with its other rewards alone it would be compared with answers that have all of theirs. What
        is logged wrongly is left out.

        Raises:
            RewardError: a fault, where ``on_error`` is "raise"; memory that ran out is one, on a GPU too.
        """
        found = Scores.none(len(samples), len(self.functions))
        if not samples:
            return found
        self.know_columns(*(sample.row for sample in samples))
        logs = [CallLog(len(samples)) for _ in self.functions]
        outcomes = self._outcomes(samples, trainer_state, logs, found)
        faulty = []
        for place, (outcome, log) in enumerate(zip(outcomes, logs, strict=True)):
            if isinstance(outcome, BaseException):
                self._lose(place, outcome, samples, found)
            self._take_log(place, log, samples, found)
            if isinstance(outcome, BaseException):
                continue
            column, wrong = as_scores(outcome, self.weights[place])
            found.values[:, place] = torch.tensor(column)
            if wrong:
                places = list(wrong)
                more = f" (and {len(places) - 1} more like that)" if len(places) > 1 else ""
                self._fault(place, Fault(kind="score", text=wrong[places[0]] + more, places=places), samples, found)
                faulty += places
        found.values[faulty] = torch.nan
        return found

    def _outcomes(self, samples: list[Sample], trainer_state: Any, logs: list[CallLog], found: Scores) -> list[Any]:
        """What each reward returned, as a list, or ended with: the functions one after the other, then coroutines together."""
        outcomes: list[Any] = []
        for place, (function, log) in enumerate(zip(self.functions, logs, strict=True)):
            arguments = self._arguments(samples, trainer_state, log, reads_messages(function))
            call = partial(_called, function, arguments, len(samples))
            outcomes.append(outcome_of(call, self.timeout))
            if isinstance(outcomes[-1], BaseException) and self.on_error == "raise":
                for outcome in outcomes:
                    if inspect.isawaitable(outcome):
                        # Nobody will wait for it.
                        getattr(outcome, "close", lambda: None)()
                self._lose(place, outcomes[-1], samples, found)
        pending = [place for place, outcome in enumerate(outcomes) if inspect.isawaitable(outcome)]
        awaitables = [_awaited(outcomes[place], len(samples)) for place in pending]
        for place, outcome in zip(pending, outcomes_together(awaitables, self.timeout), strict=True):
            outcomes[place] = outcome
        return outcomes

    def _arguments(
        self, samples: list[Sample], trainer_state: Any, log: CallLog, messages: bool = False
    ) -> dict[str, Any]:
        """Of one call; ``messages``: texts as conversations too."""
        seen: dict[int, Any] = {}
        arguments = {
            **{key: [sample.row.get(key) for sample in samples] for key in sorted(self.columns)},
            "images": [sample.images for sample in samples],
            "prompts": [sample.row["prompt"] for sample in samples],
            "completions": [sample.for_reward for sample in samples],
            "completion_ids": [sample.completion_ids for sample in samples],
            "task": [sample.task for sample in samples],
        }
        if any(sample.earlier for sample in samples):
            arguments["thoughts"] = [sample.thought for sample in samples]
        if messages:
            for name, role in (("prompts", "user"), ("completions", "assistant")):
                arguments[name] = [as_messages(text, role) for text in arguments[name]]
        return {
            **{key: own_copy(values, seen) for key, values in arguments.items()},
            "trainer_state": state_copy(trainer_state),
            "log_extra": log.log_extra,
            "log_metric": log.log_metric,
        }

    def know_columns(self, *rows: dict[str, Any]) -> None:
        """The columns of ``rows`` reach the rewards from now on: a window of a mixed run may lack those of one task."""
        self.columns.update(key for row in rows for key in row if key not in RESERVED)

    def warn(self, message: str, kind: str, name: str = "") -> None:
        """A warning, given once for each ``kind`` and reward of the run."""
        if (name, kind) not in self._warned:
            self._warned.add((name, kind))
            warnings.warn(message, stacklevel=2)

    def _fault(self, place: int, fault: Fault, samples: list[Sample], found: Scores) -> None:
        """Counts what the reward at ``place`` did, and warns once for each kind of it, or raises ``RewardError``."""
        found.faults[place] += torch.tensor([len(fault.places), fault.kind == "timeout"])
        name = self.names[place]
        said = described(fault, name, [sample.row["prompt"] for sample in samples])
        if self.on_error == "raise":
            raise error_of(fault, said) from fault.error
        self.warn(
            f"{said}. The run goes on without that (reward_error='none'), and counts it in rewards/{name}/errors",
            fault.kind,
            name,
        )

    def _lose(self, place: int, error: BaseException, samples: list[Sample], found: Scores) -> None:
        """A reward failed as a whole. One that is for a single task lost the answers of that task."""
        task = getattr(self.functions[place], "task", None)
        places = [i for i, sample in enumerate(samples) if sample.task == task] or list(range(len(samples)))
        found.lost[place] = True
        self._fault(place, failed_call(error, self.timeout, places), samples, found)

    def _take_log(self, place: int, log: CallLog, samples: list[Sample], found: Scores) -> None:
        """What one call logged."""
        for text in list(log.faults):
            self._fault(place, Fault(kind="log", text=text, places=[0]), samples, found)
        found.extras.update(dict(log.extras))
        for name, values in list(log.metrics.items()):
            found.metrics.setdefault(name, []).extend(values)
            if name.endswith(UNREADABLE):
                found.unreadable[place] += int(sum(values))


def _called(function: Callable, arguments: dict[str, Any], expected: int) -> Any:
    """The function's scores as a list, or what is to be awaited for them. Reading an iterator is part of the call."""
    result = function(**taken(function, arguments))
    return result if inspect.isawaitable(result) else as_list(result, expected)


async def _awaited(awaitable: Any, expected: int) -> list:
    return as_list(await awaitable, expected)
