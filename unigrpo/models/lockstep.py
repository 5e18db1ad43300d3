"""The same number of forwards on every process, where a forward waits for the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..types import Canvas, TokenSpace
from .base import DiffusionPolicy


ASKED = (
    "select",
    "targets",
    "token_space",
    "temperature",
    "guidance_scale",
    "ref_logprobs",
    "draw",
    "cache",
    "counts",
    "coefficients",
    "asks",
)
"""Arguments of a forward that say what is asked for; the others are the model's inputs."""


def forwards_meet(model: nn.Module) -> bool:
    """Whether a forward without gradients communicates with the other processes.

    Sharded weights are gathered by every forward (FSDP, FSDP2, ZeRO-3). ``DistributedDataParallel`` synchronises in the
    backward alone, with one exception: it broadcasts buffers in the first forward after a synchronised one, if there are
    any.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.nn.parallel import DistributedDataParallel

    if any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in model.modules()):
        return True
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return True
    return isinstance(model, DistributedDataParallel) and model.broadcast_buffers and len(model.modules_buffers) > 0


@contextmanager
def lockstep(model: nn.Module, policy: DiffusionPolicy, device: torch.device | str) -> Iterator[Lockstep]:
    """Yields what to call instead of ``model``; all processes leave the block after equally many forwards.

    Every process enters the block, in eval mode. Each forward begins by counting the processes that make one; a process
    that is done goes on with forwards of a single row, whose results nobody reads, until the count is 0. An error in the
    block leaves it at once: the others then wait until the launcher ends them, as after any error of one process.
    """
    together = Lockstep(model, policy, device)
    yield together
    together.finish()


class Lockstep:
    """Stands for a module, and keeps the processes' forwards in step."""

    def __init__(self, model: nn.Module, policy: DiffusionPolicy, device: torch.device | str) -> None:
        self.model, self.policy, self.device = model, policy, device
        self.spare: dict[str, Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, **arguments: Any) -> Any:
        self._working(1)
        if self.spare is None:
            # The first forward of a rollout reads whole canvases, also where later ones read a part beside a cache.
            self.spare = {
                key: value[:1] for key, value in arguments.items() if isinstance(value, Tensor) and key not in ASKED
            }
        return self.model(**arguments)

    @torch.no_grad()
    def finish(self) -> None:
        """Forwards of no use, as long as another process makes one of use."""
        while self._working(0):
            inputs = self.spare or one_token(self.policy, self.device)
            select = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
            select[0, 0] = True
            self.model(**inputs, select=select)

    def _working(self, own: int) -> int:
        """How many processes make a forward now."""
        count = torch.tensor(own, device=self.device)
        dist.all_reduce(count)
        return int(count)


def one_token(policy: DiffusionPolicy, device: torch.device | str) -> dict[str, Any]:
    """The smallest inputs: one row of one token. For processes that have not seen a canvas."""
    ids = torch.full((1, 1), policy.pad_token_id, device=device)
    real = torch.ones_like(ids, dtype=torch.bool)
    canvas = Canvas(
        ids=ids,
        fill_mask=real,
        attention_mask=real,
        position_ids=torch.zeros_like(ids),
        task="text",
        token_space=TokenSpace(start=0, stop=policy.pad_token_id + 1),
    )
    return policy.inputs(canvas)
