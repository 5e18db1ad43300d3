"""Which rows an optimizer step trains: sources mixed by weights, each walked through in shuffled epochs of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..types import keyed_generator


class Mixture:
    """The rows of every step of a run. They depend on the seed and the step's number, not on how processes share them.

    A step's shares are the weights as closely as whole rows allow (systematic sampling): a source of weight w has floor(w R) or
    ceil(w R) of R rows, and w R in the mean. No row of a source comes again before all others have.

    Args:
        sizes: rows of each source, by name.
        weights: of each source, any sum; None = its number of rows.
        rows: R, rows of an optimizer step on all processes.
        shuffle: False walks each source in its own order.

    Raises:
        ValueError: weights that do not name the sources, or none above 0.
    """

    def __init__(
        self, sizes: Mapping[str, int], weights: Mapping[str, float] | None, rows: int, seed: int, shuffle: bool = True
    ) -> None:
        weights = {name: float(size) for name, size in sizes.items()} if weights is None else dict(weights)
        if weights.keys() != sizes.keys():
            raise ValueError(
                f"sampling_weights names {sorted(weights)}, the sources are {sorted(sizes)}: give a weight for each"
            )
        if min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise ValueError(f"sampling_weights={weights}: weights must not be negative, and one must be positive")
        self.names, self.sizes, self.rows, self.seed, self.shuffle = list(sizes), dict(sizes), rows, seed, shuffle
        shares = torch.tensor([weights[name] for name in self.names], dtype=torch.float64)
        self._ends = (shares / shares.sum()).cumsum(0)
        self._used = 0, torch.zeros(len(self.names), dtype=torch.int64)
        self._orders: dict[str, tuple[int, torch.Tensor]] = {}

    def step(self, number: int) -> list[tuple[str, int]]:
        """Source and index of each of the R rows of step ``number``, from 0."""
        sources, used = self._sources(number).tolist(), self._before(number).tolist()
        rows = []
        for source in sources:
            rows.append((self.names[source], self._index(self.names[source], used[source])))
            used[source] += 1
        return rows

    def _before(self, number: int) -> torch.Tensor:
        """Rows of each source in the steps before ``number``; quick where steps are asked for in order."""
        start, used = self._used if self._used[0] <= number else (0, torch.zeros_like(self._used[1]))
        for earlier in range(start, number):
            used = used + self._sources(earlier).bincount(minlength=len(self.names))
        self._used = number, used
        return used

    def _sources(self, number: int) -> torch.Tensor:
        """The source of each row, ``[R]`` int64."""
        generator = keyed_generator("mixture", self.seed, number)
        start = torch.rand((), dtype=torch.float64, generator=generator)
        places = (torch.arange(self.rows, dtype=torch.float64) + start) / self.rows
        sources = torch.searchsorted(self._ends, places, right=True).clamp(max=int((self._ends < 1).sum()))
        return sources[torch.randperm(self.rows, generator=generator)]

    def _index(self, name: str, count: int) -> int:
        """The row of a source after ``count`` others of it."""
        epoch, place = divmod(count, self.sizes[name])
        if not self.shuffle:
            return place
        if name not in self._orders or self._orders[name][0] != epoch:
            order = torch.randperm(self.sizes[name], generator=keyed_generator("order", self.seed, name, epoch))
            self._orders[name] = epoch, order
        return int(self._orders[name][1][place])
