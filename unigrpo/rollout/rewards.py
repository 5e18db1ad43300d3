"""Calling reward functions: TRL's protocol, sync or async, functions or reward models."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ..algorithm.combining import Combination, RewardTerm
from ..models.loading import load_classifier, load_config, load_processor
from ..rewards import get_reward
from ..types import Sample
from .bounded_call import outcome_later, outcome_of, outcomes_together
from .model_reward import ModelReward
from .reward_arguments import as_messages, reads_messages
from .reward_calls import Begun, Call, awaited, called, joined
from .reward_faults import Fault, described, error_of, failed_call
from .reward_values import CallLog, as_scores, logged_together, own_copy, state_copy


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
        seconds: of the calls of each reward that ended, by its name.
    """

    values: Tensor
    lost: Tensor
    faults: Tensor
    unreadable: Tensor
    extras: dict[str, list] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def none(cls, answers: int, rewards: int) -> Scores:
        """No score, nothing wrong and nothing logged yet."""
        return cls(
            values=torch.full((answers, rewards), torch.nan),
            lost=torch.zeros(rewards, dtype=torch.bool),
            faults=torch.zeros(rewards, 2, dtype=torch.int64),
            unreadable=torch.zeros(rewards, dtype=torch.int64),
        )


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


def unique_names(names: list[str]) -> list[str]:
    """``names``, further ones of the same name with a number: ``remote``, ``remote_2``."""
    found: list[str] = []
    for base in names:
        name, number = base, 1
        while name in found:
            number += 1
            name = f"{base}_{number}"
        found.append(name)
    return found


@dataclass(slots=True)
class RewardSet:
    """The rewards of a run.

    Attributes:
        functions: callables; names are made unique with a number.
        weights: one a function.
        terms: how each enters the sum; None = as it is.
        columns: dataset columns that every call gets, also where no row of a batch has them.
        on_error: what a fault does: ``"raise"`` a ``RewardError``, or ``"none"``, see ``score``.
        timeout: seconds for one call of one reward; None = no bound. ``bounded_call`` says how calls are ended.
        golds: by the place of a reward, how many solutions of this run it could not read, and how many answers it scored.
        alike: how many prompts there were before the first whose answers were not all rewarded alike; None once it came.
    """

    functions: list[Callable]
    weights: list[float] | None = None
    terms: list[RewardTerm] | None = None
    columns: set[str] = field(default_factory=set)
    on_error: str = "raise"
    timeout: float | None = None
    names: list[str] = field(init=False)
    combination: Combination | None = field(init=False)
    golds: dict[int, tuple[int, int]] = field(init=False, default_factory=dict)
    alike: int | None = field(init=False, default=0)
    _warned: set[tuple[str, str]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        if not self.functions:
            raise ValueError("reward_funcs is empty: give at least one reward, e.g. 'math_correctness'")
        if self.weights is None:
            self.weights = [1.0] * len(self.functions)
        if len(self.weights) != len(self.functions):
            raise ValueError(f"reward_weights has {len(self.weights)} values for {len(self.functions)} rewards")
        self.names = unique_names([reward_name(function) for function in self.functions])
        self.combination = None if self.terms is None else Combination(self.names, self.terms)

    def score(self, samples: list[Sample], trainer_state: Any = None, begun: Sequence[Begun] = ()) -> Scores:
        """The scores of ``samples``, NaN where a reward returned None.

        Each reward gets copies of everything, so that what it changes reaches neither another one nor the run. One that has
        ``begun`` with some of the answers gets the others here.
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
        calls = [[own.ended(samples) for own in begun if own.place == place] for place in range(len(self.functions))]
        self._call_rest(samples, trainer_state, calls, found)
        faulty = []
        for place, own in enumerate(calls):
            failed = next((call for call in own if isinstance(call.outcome, BaseException)), None)
            if failed is not None:
                self._lose(place, failed, samples, found)
            self._take_logs(place, own, samples, found)
            if failed is not None:
                continue
            scores = joined([(call.rows, call.outcome) for call in own], len(samples))
            factor = 1.0 if self.terms is None else self.terms[place].largest_factor
            column, wrong = as_scores(scores, self.weights[place] * factor)
            found.values[:, place] = torch.tensor(column)
            if wrong:
                places = list(wrong)
                more = f" (and {len(places) - 1} more like that)" if len(places) > 1 else ""
                self._fault(place, Fault(kind="score", text=wrong[places[0]] + more, places=places), samples, found)
                faulty += places
        found.values[faulty] = torch.nan
        return found

    def begin(self, place: int, samples: list[Sample], trainer_state: Any = None) -> Begun:
        """The call of the reward at ``place`` with some answers, in the background."""
        call, log = self._call(place, samples, trainer_state)
        indices = [sample.index for sample in samples]
        later = outcome_later(call, self.timeout, lambda own: awaited(own, len(samples), log))
        return Begun(place=place, indices=indices, log=log, future=later)

    def _call(self, place: int, samples: list[Sample], trainer_state: Any) -> tuple[Callable[[], Any], CallLog]:
        """A call of the reward at ``place``, to be made, and its log."""
        function, log = self.functions[place], CallLog(len(samples))
        arguments = self._arguments(samples, trainer_state, log, reads_messages(function))
        return partial(called, function, arguments, len(samples), log), log

    def _call_rest(self, samples: list[Sample], trainer_state: Any, calls: list[list[Call]], found: Scores) -> None:
        """Adds the calls with the answers that a reward has not got yet: the functions one after the other, then coroutines together."""
        pending: list[Call] = []
        for place, own in enumerate(calls):
            given = {row for call in own for row in call.rows}
            rows = [row for row in range(len(samples)) if row not in given]
            if not rows:
                continue
            call, log = self._call(place, [samples[row] for row in rows], trainer_state)
            own.append(Call(rows=rows, log=log, outcome=outcome_of(call, self.timeout)))
            outcome = own[-1].outcome
            if inspect.isawaitable(outcome):
                pending.append(own[-1])
            if isinstance(outcome, BaseException) and self.on_error == "raise":
                for other in pending:
                    # Nobody will wait for it.
                    getattr(other.outcome, "close", lambda: None)()
                self._lose(place, own[-1], samples, found)
        awaitables = [awaited(call.outcome, len(call.rows), call.log) for call in pending]
        outcomes = outcomes_together(awaitables, self.timeout)
        for call, outcome in zip(pending, outcomes, strict=True):
            call.outcome = outcome

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

    def _fault(
        self, place: int, fault: Fault, samples: list[Sample], found: Scores, rows: list[int] | None = None
    ) -> None:
        """Counts what the reward at ``place`` did, and warns once for each kind of it, or raises ``RewardError``.

        ``rows``: those of the call that did it; None: all.
        """
        found.faults[place] += torch.tensor([len(fault.places), fault.kind == "timeout"])
        name = self.names[place]
        rows = list(range(len(samples))) if rows is None else rows
        first = next((row for row in fault.places if row in rows), rows[0])
        empty = [key for key in sorted(self.columns) if all(samples[row].row.get(key) is None for row in rows)]
        said = described(fault, name, len(rows), samples[first].row["prompt"], empty)
        if self.on_error == "raise":
            raise error_of(fault, said) from fault.error
        self.warn(
            f"{said}. The run goes on without that (reward_error='none'), and counts it in rewards/{name}/errors",
            fault.kind,
            name,
        )

    def _lose(self, place: int, call: Call, samples: list[Sample], found: Scores) -> None:
        """A reward failed as a whole, by one call of it. One that is for a single task lost the answers of that task."""
        task = getattr(self.functions[place], "task", None)
        places = [i for i, sample in enumerate(samples) if sample.task == task] or list(range(len(samples)))
        found.lost[place] = True
        self._fault(place, failed_call(call.outcome, self.timeout, places), samples, found, call.rows)

    def _take_logs(self, place: int, calls: list[Call], samples: list[Sample], found: Scores) -> None:
        """What the calls of one reward logged, as if there had been one."""
        for text in [text for call in calls for text in list(call.log.faults)]:
            self._fault(place, Fault(kind="log", text=text, places=[0]), samples, found)
        for column in dict.fromkeys(column for call in calls for column in dict(call.log.extras)):
            parts = [(call.rows, call.log.extras[column]) for call in calls if column in call.log.extras]
            found.extras[column] = joined(parts, len(samples))
        logged = logged_together([(call.log, len(call.rows)) for call in calls])
        for name, values in logged.items():
            found.metrics.setdefault(name, []).extend(values)
            if name.endswith(UNREADABLE):
                found.unreadable[place] += int(sum(values))
        seconds = [call.log.seconds for call in calls if call.log.seconds is not None]
        found.seconds[self.names[place]] = seconds
