"""Keys that an algorithm may set for a whole run: how often a rollout is used, and what rewards become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..algorithm.advantages import ADVANTAGE_ESTIMATORS
from ..parts import MOST_REPEATS, Key, key, keys_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RunKeys:
    """What holds for all tasks, because the answers of a window are compared and used together."""

    num_iterations: int = key(
        1, "K, inner updates on one rollout, each with its own noise", at_least=1, at_most=MOST_REPEATS
    )
    pictures_per_thought: int = key(
        1,
        "pictures drawn after each thought of a group (task r2i); num_generations is a multiple of it",
        at_least=1,
        at_most=MOST_REPEATS,
    )
    r2i_decoding: str = key(
        "thought_first",
        """the picture is drawn after the whole thought ("thought_first"); or both are written together, step by step in turn, each
        reading what the other has written ("joint"); or in parallel, one forward a step of the thought serving both ("parallel",
        MMaDA-Parallel). The latter two want r2i_noise: joint and pictures_per_thought: 1""",
        choices=("thought_first", "joint", "parallel"),
    )
    r2i_noise: str = key(
        "span",
        """a thought is noised before there is a picture, and the picture after the whole thought, each with its task's noising
        ("span"); or both are noised with one ratio, each reading what the other shows ("joint", MMaDA's law)""",
        choices=("span", "joint"),
    )
    advantage_estimator: dict[str, Any] | str = key("group_mean", "how rewards lose their baseline")
    advantage_clip: float | None = key(None, "advantages are cut to +-this; none = not", above=0)
    scale_rewards: str = key(
        "group",
        """rewards are divided by the std of the "group" ("group_population": without Bessel's correction), of the "batch", or
        not ("none"); true and false are read as "group" and "none" """,
        choices=("group", "group_population", "batch", "none"),
    )
    multi_objective_aggregation: str = key(
        "sum_then_normalize",
        'several rewards: "sum_then_normalize", or "normalize_then_sum", each normalised in its group',
        choices=("sum_then_normalize", "normalize_then_sum"),
    )


def _run_keys() -> dict[str, Key]:
    keys = dict(keys_of(RunKeys))
    for part in ADVANTAGE_ESTIMATORS.values():
        keys = {**keys_of(part), **keys}
    return keys


RUN_KEYS: Mapping[str, Key] = MappingProxyType(_run_keys())
"""By name, those of the advantage estimators included."""

ESTIMATOR_KEYS = frozenset(RUN_KEYS) - frozenset(keys_of(RunKeys))
"""Those of them that advantage estimators read."""
