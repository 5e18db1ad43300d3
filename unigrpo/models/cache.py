"""Keys and values of a canvas, kept while a block of it is being written (Fast-dLLM, arXiv 2505.22618).

Bidirectional attention makes every key depend on every token, so kept keys are stale as soon as a token is written: decoding
with them is an approximation, as good as the canvas outside the block is settled.
"""

from __future__ import annotations

from torch import Tensor

from .placing import upload


class KeyValueCache:
    """What each layer's attention saw at the last full forward.

    A forward with ``span=None`` computes all positions and keeps their keys and values. A forward with a span computes those
    columns alone, overwrites their keys and values, and attends to everything that is kept.

    Attributes:
        span: columns ``[start, stop)`` that the next forward computes; None = all.
        length: L, once it is filled.
    """

    def __init__(self) -> None:
        self.span: tuple[int, int] | None = None
        self._layers: list[LayerCache] = []

    @property
    def length(self) -> int | None:
        return self._layers[0].key.shape[2] if self._layers else None

    def columns(self) -> slice:
        """``span`` as a slice."""
        return slice(None) if self.span is None else slice(*self.span)

    def restrict(self, values: Tensor) -> Tensor:
        """``values [B, L, ...]`` of the columns that the next forward computes."""
        return values[:, self.columns()]

    def layers(self, count: int) -> list[LayerCache]:
        """A cache for each of ``count`` layers, to be used in the next forward."""
        if self.span is None:
            self._layers = [LayerCache() for _ in range(count)]
        for layer in self._layers:
            layer.columns = None if self.span is None else self.columns()
        return self._layers

    def take(self, rows: list[int]) -> None:
        """Goes on with ``rows`` of the batch alone."""
        for layer in self._layers:
            index = upload(rows, layer.key.device)
            layer.key, layer.value = layer.key[index], layer.value[index]


class LayerCache:
    """One layer's keys and values ``[B, heads, L, head_dim]``. It does not know which layer, so that compiled blocks are
    alike.
    """

    columns: slice | None
    key: Tensor
    value: Tensor

    def update(self, key: Tensor, value: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Keeps those of the computed columns and returns those of all positions. What else layers of transformers say is not
        read.
        """
        if self.columns is None:
            self.key, self.value = key, value
        else:
            self.key[:, :, self.columns], self.value[:, :, self.columns] = key, value
        return self.key, self.value


class GrowingCache:
    """Keys and values of the blocks that are finished, for block-causal attention: exact, because no later token changes them.

    A forward computes some columns of each row, keeps their keys and values, and attends to everything that is kept: a query sees
    its own block and earlier ones, which must be among what was computed so far. What is kept of later blocks is never seen.

    Attributes:
        span: ``[B, m]`` int64, the columns that the next forward computes, each row's own.
        length: L.
    """

    span: Tensor

    def __init__(self, length: int) -> None:
        self.length = length
        self._layers: list[GrowingLayer] = []

    def restrict(self, values: Tensor) -> Tensor:
        """``values [B or 1, L, ...]`` of the columns that the next forward computes, ``[B, m, ...]``."""
        own = values.expand(len(self.span), *values.shape[1:])
        return own.gather(
            1, self.span.view(*self.span.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
        )

    def layers(self, count: int) -> list[GrowingLayer]:
        """A cache for each of ``count`` layers, to be used in the next forward."""
        self._layers = self._layers or [GrowingLayer(self.length) for _ in range(count)]
        for layer in self._layers:
            layer.columns = self.span
        return self._layers

    def take(self, rows: list[int]) -> None:
        """Goes on with ``rows`` of the batch alone."""
        for layer in self._layers:
            index = upload(rows, layer.key.device)
            layer.key, layer.value = layer.key[index], layer.value[index]


class GrowingLayer:
    """One layer's keys and values ``[B, heads, L, head_dim]``, zero where nothing was computed yet."""

    columns: Tensor
    key: Tensor
    value: Tensor

    def __init__(self, length: int) -> None:
        self.length, self.filled = length, False

    def update(self, key: Tensor, value: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """As ``LayerCache.update``."""
        if not self.filled:
            self.key, self.value = (own.new_zeros(*own.shape[:2], self.length, own.shape[3]) for own in (key, value))
            self.filled = True
        places = self.columns[:, None, :, None].expand_as(key)
        self.key.scatter_(2, places, key)
        self.value.scatter_(2, places, value)
        return self.key, self.value
