"""What the stages of a window work with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config.arguments import UniGRPOConfig
from ..config.build import Algorithm
from ..data.image_codes import ImageCodec
from ..models.base import DiffusionPolicy
from .rewards import RewardSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What ``make_experience`` works with.

    Attributes:
        model: the module to call (wrapped or not).
        policy, args, rewards: its description, the run's arguments, the rewards.
        algorithms: the algorithm of each task.
        reference: context that yields the module to call as the reference policy; needed where beta > 0.
        gather: concatenates a ``[n, ...]`` tensor over ranks.
        gather_objects: joins the lists of all ranks.
        new_prompt: dataset row for (window, round, group); needed for refills.
        rank, ranks, device: this process, how many there are, and where this one computes.
        on_step: progress of sampling, ``on_step(done, total)``.
        codec: the image tokenizer; needed for tasks ``mmu`` and ``t2i``.
        forwards_meet: a forward waits for the other processes (see ``lockstep``). All of them then make equally many in a
            rollout, and none repeats one that ran out of memory.
        fitted: the rollout batch that fitted, by task, where ``rollout_batch_size`` did not. Written by ``sample_answers``;
            who keeps a run's pipelines hands the same mapping to each.
    """

    model: Any
    policy: DiffusionPolicy
    args: UniGRPOConfig
    rewards: RewardSet
    algorithms: dict[str, Algorithm]
    reference: Callable[[], AbstractContextManager] | None = None
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor
    gather_objects: Callable[[list], list] = lambda items: items
    new_prompt: Callable[[int, int, int], dict[str, Any]] | None = None
    rank: int = 0
    ranks: int = 1
    device: torch.device | str = "cpu"
    on_step: Callable[[int, int], None] | None = None
    trainer_state: Any = None
    codec: ImageCodec | None = None
    forwards_meet: bool = False
    fitted: dict[str, int] = field(default_factory=dict)


@contextmanager
def evaluating(model) -> Iterator[None]:
    """Eval mode for the block: adapter dropout in a rollout would put noise into every ratio."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
