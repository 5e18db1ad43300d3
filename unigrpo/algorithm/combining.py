"""What becomes of each reward before all are weighted and summed: gates, bounds, one scale, win rates, schedules of weights."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..parts import check_keys, key, keys_of
from .advantages import EPSILON, group_moments


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSchedule:
    """A factor on a reward's weight: ``start`` up to the first of two optimizer steps, ``end`` from the second one, a line between.

    Two equal steps make a jump: before them ``start``, from them on ``end``.
    """

    start: float = key(1.0, "factor on the weight up to the first of steps")
    end: float = key(1.0, "factor on the weight from the last of steps on")
    steps: list[int] = key(None, "[first, last], optimizer steps between which the factor goes in a line")

    def __post_init__(self) -> None:
        check_keys(self)
        if len(self.steps) != 2 or not 0 <= self.steps[0] <= self.steps[1]:
            raise ValueError(f"steps={self.steps!r} must be [first, last] with 0 <= first <= last, such as [0, 500]")

    def factor(self, step: int) -> float:
        """The factor at optimizer step ``step``, counted from 0."""
        first, last = self.steps
        if step >= last:
            return self.end
        if step <= first:
            return self.start
        return self.start + (self.end - self.start) * (step - first) / (last - first)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTerm:
    """How the scores of one reward enter the sum, in this order: gate, clip, then standardise or win_rate. By default as they are."""

    gate: str | None = key(
        None,
        """name of another reward: where that one scores 0 or less this one scores 0 before all else, and where that one does not
        apply neither does this one""",
    )
    clip: list[float | None] | None = key(
        None, "[low, high], scores beyond a bound are set to it; none for no bound on a side"
    )
    standardise: bool = key(
        False, "scores minus their mean, over their std + 1e-4, both of all scores of the window, on all processes"
    )
    win_rate: bool = key(
        False,
        """in place of a score the share of the group's other scores that it exceeds, ties count half: from 0 to 1, 0.5 without
        another score""",
    )
    schedule: dict[str, Any] | None = key(
        None,
        """{start: 0.0, end: 1.0, steps: [100, 500]}: a factor on the weight, start up to optimizer step 100, end from step 500, a
        line between; 1 where one of the two is left out""",
    )

    def __post_init__(self) -> None:
        check_keys(self)
        if self.clip is not None:
            bounds = [own for own in self.clip if own is not None]
            if (
                len(self.clip) != 2
                or not bounds
                or bounds != sorted(set(bounds))
                or not all(map(math.isfinite, bounds))
            ):
                raise ValueError(
                    f"clip={self.clip!r} must be [low, high] with low < high, such as [-1.0, 1.0]; null is no bound"
                )
        if self.standardise and self.win_rate:
            raise ValueError(
                "standardise=True and win_rate=True are two scales for the same scores: leave one of them out"
            )
        self.weights()

    def weights(self) -> WeightSchedule:
        """The schedule; a constant 1 where none is given."""
        given = {"steps": [0, 0]} if self.schedule is None else self.schedule
        return _made(WeightSchedule, given, "schedule")

    @property
    def largest_factor(self) -> float:
        """What the weight is multiplied by, at most, in size."""
        return max(abs(self.weights().start), abs(self.weights().end))


def read_terms(given: Sequence[Mapping[str, Any]], where: str = "reward_terms") -> list[RewardTerm]:
    """One term from each mapping of keys.

    Raises:
        ValueError: an unknown key, or a value that it cannot have; the message starts with ``where`` and the number.
    """
    terms = []
    for number, own in enumerate(given):
        place = f"{where}[{number}]"
        if not isinstance(own, Mapping):
            raise ValueError(f"{place}={own!r} must be a mapping of {', '.join(keys_of(RewardTerm))}; {{}} for none")
        try:
            terms.append(_made(RewardTerm, own, ""))
        except ValueError as error:
            raise ValueError(f"{place}.{error}") from error
    return terms


def _made(kind: type, given: Any, name: str) -> Any:
    """A ``kind`` from its mapping; errors start with the key, those of a mapping that is called ``name`` with that."""
    keys = keys_of(kind)
    if not isinstance(given, Mapping):
        raise ValueError(f"{name}={given!r} must be a mapping of {', '.join(keys)}")
    for own in given:
        if own not in keys:
            near = difflib.get_close_matches(str(own), keys, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"keys are {list(keys)}"
            raise ValueError(f"{name}{'.' if name else ''}{own} is no key of a reward: {hint}")
    if "steps" in keys and given.get("steps") is None:
        raise ValueError(f"{name} needs steps: [first, last], the optimizer steps between which the weight changes")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{name}{'.' if name else ''}{error}") from error


@dataclass(frozen=True, slots=True)
class Combination:
    """The terms of all rewards of a run, F of each.

    Args:
        names: of the rewards, each once; gates are among them.
        terms: one a reward.

    Raises:
        ValueError: another number of terms than of rewards, or a gate that is no other reward.
    """

    names: Sequence[str]
    terms: Sequence[RewardTerm]

    def __post_init__(self) -> None:
        if len(self.terms) != len(self.names):
            raise ValueError(
                f"reward_terms has {len(self.terms)} entries for {len(self.names)} rewards: give one a reward, {{}} for none"
            )
        for name, term in zip(self.names, self.terms, strict=True):
            others = [own for own in self.names if own != name]
            if term.gate is not None and term.gate not in others:
                near = difflib.get_close_matches(term.gate, others, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the others are {others}"
                raise ValueError(f"gate={term.gate!r} of the reward {name!r} is no other reward of the run: {hint}")

    def __call__(self, scores: Float[Tensor, "B F"], num_generations: int) -> Float[Tensor, "B F"]:
        """What is weighted and summed, in the type of ``scores``.

        Args:
            scores: raw rewards of a whole window, all processes', NaN = does not apply; rows of a group are adjacent.
            num_generations: G, rows in a group.
        """
        raw = dict(zip(self.names, scores.unbind(dim=1), strict=True))
        columns = [
            _entered(raw, name, term, num_generations) for name, term in zip(self.names, self.terms, strict=True)
        ]
        return torch.stack(columns, dim=1).to(scores.dtype)

    def factors(self, step: int) -> Float[Tensor, " F"]:
        """Factors on the weights at optimizer step ``step``."""
        return torch.tensor([term.weights().factor(step) for term in self.terms], dtype=torch.float32)


def _entered(raw: Mapping[str, Tensor], name: str, term: RewardTerm, num_generations: int) -> Tensor:
    """The scores ``[B]`` of one reward as they enter the sum."""
    own = raw[name]
    if term.gate is not None:
        gate = raw[term.gate]
        own = torch.where(gate > 0, own, own.masked_fill(~own.isnan(), 0.0)).masked_fill(gate.isnan(), torch.nan)
    if term.clip is not None:
        own = own.clamp(*term.clip)
    if term.standardise:
        mean, std = group_moments(own)
        own = (own - mean) / (std + EPSILON)
    if term.win_rate:
        own = win_rates(own.view(-1, num_generations)).reshape(-1)
    return own


def win_rates(groups: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
    """Of each score the share of the other scores in its group that it exceeds, ties counting half; 0.5 for a single one.

    The mean over a group is 1/2. NaN, where no reward applies, stays NaN and is nobody's opponent.
    """
    mine, other = groups[:, :, None], groups[:, None, :]
    # NaN compares as false; a score ties with itself, which is taken away.
    wins = (mine > other).sum(dim=2) + ((mine == other).sum(dim=2) - 1) / 2
    others = (~groups.isnan()).sum(dim=1, keepdim=True) - 1
    rates = torch.where(others > 0, wins / others.clamp(min=1), 0.5)
    return rates.to(groups.dtype).masked_fill(groups.isnan(), torch.nan)
