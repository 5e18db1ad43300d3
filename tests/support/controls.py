"""Rewards that carry no information, for control runs: the real scores, dealt to other answers of the same batch."""

from __future__ import annotations

import random
from functools import lru_cache

from unigrpo.rewards import get_reward


_DEALER = random.Random(0)


def _shuffled(name: str, columns: dict) -> list:
    scores = get_reward(name)(**columns)
    _DEALER.shuffle(scores)
    return scores


def shuffled_correctness(**columns) -> list:
    return _shuffled("math_correctness", columns)


def shuffled_format(**columns) -> list:
    return _shuffled("think_format", columns)


_with_a_model = lru_cache(maxsize=1)(get_reward)


def shuffled_clip_score(model: str, **columns) -> list:
    scores = _with_a_model("clip_score", model=model)(**columns)
    _DEALER.shuffle(scores)
    return scores


def shuffled_vqa_score(model: str, base_url: str, **columns) -> list:
    scores = _with_a_model("vqa_score", model=model, base_url=base_url)(**columns)
    _DEALER.shuffle(scores)
    return scores


def never(completion, solution) -> bool:
    """A measure of accuracy by which nothing is right."""
    return False
