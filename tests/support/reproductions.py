"""A card of a reproduction, without its run."""

from __future__ import annotations

from typing import Any

from unigrpo.runs.reproduce.card import make_card
from unigrpo.runs.reproduce.table import chosen
from unigrpo.runs.train import versions

from .run_folders import accuracy


def card_of(
    after: float = 0.88, before: float = 0.58, words: tuple[str, ...] = (), name: str = "toy"
) -> dict[str, Any]:
    """A card of ``name``'s usual budget, with these accuracies."""
    _, budget_name, budget = chosen(name, None)
    found = {"held_out_accuracy_before": accuracy(before), "held_out_accuracy_after": accuracy(after)}
    rewards = {"held_out_rewards_before": {"reward": 3.0}, "held_out_rewards_after": {"reward": 4.0}}
    summary = {**found, **rewards, "optimizer_steps": 60, "train_seconds": 61.5, "versions": versions()}
    return make_card(name, budget_name, budget, list(words), summary, None)
