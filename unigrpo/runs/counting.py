"""Bytes that a model's own code holds, found out without memory.

Weights are counted on the meta device. Activations are counted by running the code on fake tensors, which have shapes and no
memory: on few layers and rows, because what is held grows in a straight line with both.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models.adapters import add_adapter
from ..models.cache import KeyValueCache


LAYERS, ROWS, LENGTH = (2, 3), 64, 512
"""Activations are counted on models of so few layers, with so many rows and twice as many, of so many tokens."""


class Live(TorchDispatchMode):
    """Bytes that operations have made and that are still held, now and at most, beside those of ``module``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        weights = (*module.parameters(), *module.buffers())
        self._sizes = dict.fromkeys((own.untyped_storage()._cdata for own in weights), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata)
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def bytes_of(module: nn.Module) -> int:
    """Its weights and buffers."""
    return sum(own.nbytes for own in (*module.parameters(), *module.buffers()))


def faked(module: nn.Module) -> nn.Module:
    """A module of the meta device, in place, with fake tensors of the CPU: autocast knows no meta device."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, own in [(name, own) for name, own in held.items() if own is not None]:
                fake = torch.zeros(own.shape, dtype=own.dtype)
                held[name] = nn.Parameter(fake, own.requires_grad) if held is part._parameters else fake
    return module


_COUNTED: dict[tuple, tuple[int, int]] = {}


def counted(key: tuple, build: Callable[[], tuple[nn.Module, Callable[[], Any]] | None]) -> tuple[int, int]:
    """Bytes of a module of the meta device, and the most that a call of it holds beside them; once for each ``key``."""
    if key not in _COUNTED:
        module, call = build() or (nn.Module(), lambda: None)
        weights = bytes_of(module)
        with FakeTensorMode(), torch.no_grad():
            faked(module.eval())
            with Live(module) as live:
                call()
        _COUNTED[key] = weights, live.peak
    return _COUNTED[key]


class _AtHead(Exception):
    """A forward has come to its head."""


@dataclass(frozen=True, slots=True)
class Model:
    """A run's model as text, so that equal models are counted once."""

    kind: Any
    config: str
    dtype: torch.dtype
    lora: str | None
    autocast: torch.dtype | None
    checkpointing: bool
    dropout: bool

    @property
    def in_blocks(self) -> bool:
        """Whether attention is causal from block to block, so that a likelihood reads a noisy and a clean copy."""
        fields = json.loads(self.config)
        return fields.get("attention") == "block_causal" or "canvas_length" in fields

    def base(self, layers: int | None = None) -> nn.Module:
        """On the meta device, with ``layers`` or all of them."""
        config = self.kind.config_class.from_dict(json.loads(self.config))
        if layers is not None:
            config.num_hidden_layers = layers
        with torch.device("meta"):
            return self.kind(config).to(self.dtype)

    def trained(self, base: nn.Module) -> nn.Module:
        """``base`` with its adapter."""
        # Some ways to begin compute with the base's weights; how many an adapter has is the same.
        lora = None if self.lora is None else LoraConfig(**{**json.loads(self.lora), "init_lora_weights": True})
        with torch.device("meta"):
            model = add_adapter(base, lora)
        if self.checkpointing:
            base.gradient_checkpointing_enable()
            if lora is not None:
                model.enable_input_require_grads()
        for part in model.modules():
            if isinstance(part, nn.Dropout) and not self.dropout:
                part.p = 0.0
        return model

    def peak(self, layers: int | None, rows: int, mode: str) -> int:
        """The most bytes of a forward up to its head, and of its backward (``"update"``), or what it keeps (``"cache"``)."""
        base = self.base(layers)
        model = self.trained(base)
        cast = nullcontext() if self.autocast is None else torch.autocast("cpu", dtype=self.autocast)
        arrived: list[Tensor] = []

        def stop(_: nn.Module, inputs: tuple) -> None:
            arrived.append(inputs[0])
            raise _AtHead

        with FakeTensorMode():
            faked(model).train(mode == "update")
            base.get_output_embeddings().register_forward_pre_hook(stop)
            ids, cache = torch.zeros(rows, LENGTH, dtype=torch.int64), {"cache": KeyValueCache()}
            with Live(model) as live, torch.set_grad_enabled(mode == "update"):
                with suppress(_AtHead), cast:
                    model(input_ids=ids, **(cache if mode == "cache" else {}))
                if mode == "update":
                    arrived[0].backward(torch.ones_like(arrived[0]))
                arrived.clear()
            return live.now if mode == "cache" else live.peak


@lru_cache
def trained_by(model: Model) -> tuple[int, int]:
    """How many weights an optimizer moves, and their bytes."""
    trained = [own for own in model.trained(model.base()).parameters() if own.requires_grad]
    return sum(own.numel() for own in trained), sum(own.nbytes for own in trained)


@lru_cache
def growth(model: Model, mode: str) -> tuple[float, float]:
    """Bytes of the whole model's activations: fixed, and a token more."""
    layers = getattr(model.base().config, "num_hidden_layers", None)
    few = LAYERS if layers is not None and layers > max(LAYERS) else (None,)
    peaks = [[model.peak(count, rows, mode) for rows in (ROWS, 2 * ROWS)] for count in few]
    lines = [(2 * one - two, (two - one) / (ROWS * LENGTH)) for one, two in peaks]
    more = layers - LAYERS[0] if len(lines) > 1 else 0
    return tuple(least + (last - least) * more for least, last in zip(lines[0], lines[-1], strict=True))
