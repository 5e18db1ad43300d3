"""Prompts of a run: the sampler that repeats each prompt for its group and hands a window's prompts out once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from ..config.arguments import UniGRPOConfig
from ..types import keyed_generator


class WindowSampler:
    """Batches of dataset indices, one batch a micro-step.

    A window of training is ``steps_per_generation x num_iterations`` micro-steps on one rollout. Its first batch holds
    this rank's prompts of the rollout, every prompt ``num_generations`` times in a row; the others are empty, because those
    micro-steps read the rollout. Only whole windows are handed out: a remainder of prompts waits for the next epoch's
    shuffle (without ``shuffle_dataset`` it is never used).

    Args:
        size: number of prompts in the dataset.
        args: the run's arguments.
        rank: this process.
    """

    def __init__(self, size: int, args: UniGRPOConfig, rank: int = 0) -> None:
        self.size, self.args, self.rank, self.epoch = size, args, rank, 0
        self.prompts = args.generation_batch_size // args.num_generations
        if size < self.prompts:
            raise ValueError(
                f"train_dataset has {size} prompts, one rollout needs {self.prompts} (generation_batch_size="
                f"{args.generation_batch_size} / num_generations={args.num_generations}); add prompts or lower it"
            )

    @property
    def window_length(self) -> int:
        return self.args.steps_per_generation * self.args.num_iterations

    def __len__(self) -> int:
        return self.size // self.prompts * self.window_length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.size)
        if self.args.shuffle_dataset:
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            order = torch.randperm(self.size, generator=keyed_generator("prompts", seed, self.epoch))
        local = self.args.generation_batch_size // self.args.world_size
        for start in range(0, self.size - self.prompts + 1, self.prompts):
            repeated = order[start : start + self.prompts].repeat_interleave(self.args.num_generations)
            yield repeated[self.rank * local : (self.rank + 1) * local].tolist()
            for _ in range(self.window_length - 1):
                yield []


class WindowLoader(DataLoader):
    """A data loader over windows that passes the epoch on to its sampler."""

    def __init__(self, dataset: Dataset, sampler: WindowSampler) -> None:
        # Without its own generator a loader draws a seed for its workers from the global one.
        super().__init__(
            dataset, batch_sampler=sampler, collate_fn=list, generator=keyed_generator("loader", sampler.args.seed)
        )

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)
