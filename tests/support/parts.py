"""Parts by name, as a configuration builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unigrpo.algorithm.advantages import ADVANTAGE_ESTIMATORS
from unigrpo.algorithm.loss import PolicyLoss
from unigrpo.algorithm.mixing import REDUCTIONS
from unigrpo.algorithm.surrogates import SURROGATES
from unigrpo.parts import keys_of


def part_of(table: dict[str, Callable], name: str, **keys: Any) -> Any:
    """The part of that name with those of ``keys`` that it has."""
    return table[name](**{key: value for key, value in keys.items() if key in keys_of(table[name])})


def estimator_of(name: str, **keys: Any) -> Any:
    return part_of(ADVANTAGE_ESTIMATORS, name, **keys)


def policy_loss(surrogate: str = "ppo", reduce: str = "per_draw", **keys: Any) -> PolicyLoss:
    """A loss of ``keys`` that belong to it, to its surrogate or to its reduction."""
    epsilon = keys.setdefault("epsilon", 0.2)
    keys.setdefault("epsilon_high", epsilon)
    own = {key: value for key, value in keys.items() if key in {*keys_of(PolicyLoss), "max_length"}}
    return PolicyLoss(
        **own, surrogate=part_of(SURROGATES, surrogate, **keys), reduce=part_of(REDUCTIONS, reduce, **keys)
    )
