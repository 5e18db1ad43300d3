"""One run divided over processes and micro-batches in many ways, and what has to stay the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch


MODULE = "tests.support.engines"


def sizes(accumulation: int, batch: int) -> dict[str, int]:
    """A rollout of two optimizer steps, one group of eight answers and one that straddles processes."""
    return {
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": 2 * accumulation,
        "per_device_train_batch_size": batch,
        "num_generations": 8,
    }


def union(rollouts: list[list[dict[int, list[int]]]]) -> list[dict[int, list[int]]]:
    """The windows' rows of all processes."""
    return [{index: ids for own in window for index, ids in own.items()} for window in zip(*rollouts, strict=True)]


def told(engine: str, lora: bool, processes: int, accumulation: int, batch: int) -> None:
    """A line for every division of the same eight answers that was found equal to one process without accumulation."""
    kind = "lora" if lora else "full"
    print(f"equivalence class: {engine} {kind}, {processes} processes x {accumulation} accumulated x {batch} answers")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference, relative to the largest entry."""
    largest = max(float(value.abs().max()) for value in other.values())
    return max(float((one[name] - value).abs().max()) for name, value in other.items()) / largest


PAIR = {"gradient_accumulation_steps": 1, "steps_per_generation": 1, "num_generations": 4, "shuffle_dataset": False}
"""Two groups of four a rollout: on two processes each has one, on one process both."""


BF16 = {**PAIR, "per_device_train_batch_size": 4, "bf16": True, "beta": 0.04, "max_steps": 4}


def assert_exact_on_policy(ranks: list[dict[str, Any]]) -> None:
    """Log-probabilities are fp32; on the policy the ratio is 1 and the KL 0, not nearly."""
    for own in ranks:
        assert own["dtypes"] == ["torch.float32"]
        assert own["first"] == {"kl": 0.0, "ratio/max": 1.0, "ratio/mean": 1.0}


def assert_resumed(ranks: list[dict[str, Any]], exactly: bool) -> None:
    """The resumed run made no new rollout in its window, and is the whole run."""
    for own in ranks:
        assert {f"rollout_window_{rank}.safetensors" for rank in range(len(ranks))} <= set(own["files"])
        assert "unigrpo_manifest.json" in own["files"]
        assert own["windows"] == 0
        for step, expected in zip(own["history"], own["expected"], strict=True):
            assert step[:2] == (expected[:2] if exactly else pytest.approx(expected[:2], rel=1e-4))
            assert step[2] == expected[2]
        final, again = own["weights"]
        assert distance(again, final) <= (0.0 if exactly else 1e-5)
