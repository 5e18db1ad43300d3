"""What the encoder of DiffusionGemma has read: keys and values that the canvas attends to, and which of them each token may see."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..placing import upload


class _Layer:
    """One layer's keys and values ``[B, heads, L, head_dim]``, by the names that transformers' decoder reads."""

    keys: Tensor
    values: Tensor


class PrefixKeys:
    """Keys and values of the tokens before a canvas, kept while it is denoised: the encoder reads causally, so they are exact.

    The first forward that is given it fills it; later ones compute the columns ``[start, stop)`` of the canvas alone.

    Attributes:
        start, stop: columns of the canvas that is denoised.
        is_compileable: False, as transformers asks: nothing here has a fixed size.
    """

    is_compileable = False

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.layers: list[_Layer] = []

    def update(self, key: Tensor, value: Tensor, index: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Keeps what the encoder's layer ``index`` made, and returns it."""
        assert index == len(self.layers), "each layer of the encoder writes once"
        layer = _Layer()
        layer.keys, layer.values = key, value
        self.layers.append(layer)
        return key, value

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        """Tokens that are kept."""
        return self.layers[0].keys.shape[2] if self.layers else 0

    def take(self, rows: list[int]) -> None:
        """Goes on with ``rows`` of the batch alone."""
        for layer in self.layers:
            index = upload(rows, layer.keys.device, torch.int64)
            layer.keys, layer.values = layer.keys[index], layer.values[index]


class Sight(NamedTuple):
    """Where the tokens of a batch stand, all ``[B, L]``.

    Attributes:
        real: bool, False at padding, which nobody sees.
        position: int64, real tokens before each.
        first: int64, the position at which the token's canvas begins; only read where ``canvas`` is at least 0.
        canvas: int64, the number of the canvas that a token is written on, -1 in the prompt.
    """

    real: Tensor
    position: Tensor
    first: Tensor
    canvas: Tensor

    @classmethod
    def of(cls, real: Tensor, position: Tensor, written: Tensor, length: int) -> Sight:
        """The answer, ``written``, is cut into canvases of ``length`` from its first token on."""
        behind = written.cumsum(dim=1)
        canvas = torch.where(written, (behind - 1).clamp(min=0).div(length, rounding_mode="floor"), -1)
        prompt = (real & (behind == 0)).sum(dim=1, keepdim=True)
        return cls(real, position, prompt + canvas * length, canvas)

    def encoder(self, window: int | None) -> Tensor:
        """What the encoder's tokens see, ``[B, 1, L, L]`` bool: themselves and real tokens before, in a ``window`` where there is one."""
        query, keys = self.position[:, :, None], self.position[:, None, :]
        seen = (keys <= query) & self.real[:, None, :]
        if window is not None:
            seen = seen & (keys > query - window)
        return (seen | torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device))[:, None]

    def decoder(self, window: int | None, columns: slice, read: slice) -> Tensor:
        """What tokens in ``columns`` see, ``[B, 1, m, n + m]`` bool: the n columns ``read`` by the encoder, then the m themselves.

        A token sees what stands before its canvas, of which a layer with a ``window`` keeps the last ``window - 1``, and its canvas.
        """
        first, keys = self.first[:, columns, None], self.position[:, None, read]
        before = (keys < first) & self.real[:, None, read]
        if window is not None:
            before = before & (keys >= first - (window - 1))
        mine, real = self.canvas[:, columns], self.real[:, columns]
        beside = (mine[:, :, None] == mine[:, None, :]) & (mine >= 0)[:, None, :] & real[:, None, :]
        # What is on no canvas sees itself: attention without any key is not a number.
        beside = beside | torch.eye(mine.shape[1], dtype=torch.bool, device=mine.device)
        return torch.cat([before & (mine >= 0)[:, :, None], beside], dim=2)[:, None]
