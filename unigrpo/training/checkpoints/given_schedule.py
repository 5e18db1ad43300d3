"""A resumed run goes on under the learning rate and the schedule that it is started with now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim.lr_scheduler import LambdaLR


@contextmanager
def as_given(optimizer: Any, scheduler: Any) -> Iterator[None]:
    """Around the loading of their states: moments and the step come from the checkpoint, settings stay as they were given.

    Of a schedule that is a function of the step, which all of transformers' but the one on a plateau are, the learning rate of
    the next step is computed anew: the stored one of a run that was done is that of its end, 0, and would be used once.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)
    by_step = isinstance(scheduler, LambdaLR)
    given = [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in optimizer.param_groups
    ]
    bases = list(scheduler.base_lrs) if by_step else []
    yield
    for group, own in zip(optimizer.param_groups, given, strict=True):
        group.update(own)
    if not by_step:
        return
    scheduler.base_lrs = bases
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    scheduler._last_lr = [base * factor for base, factor in zip(bases, factors, strict=True)]
    for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate
