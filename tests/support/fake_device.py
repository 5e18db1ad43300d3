"""A second device in the CPU's memory: it refuses what a GPU would refuse, and counts what a GPU would wait for.

``Elsewhere`` tensors claim the device ``meta`` and hold their values on the CPU. ("cuda" cannot run a backward pass without a
driver.) Under ``Watch`` every operation is looked at: operands on two devices, or a CPU generator for a tensor elsewhere, are
an error; reads that make the host wait are counted, and copies in both directions, with the line of the library that asked.
"""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from . import ROOT


DEVICE, CPU = torch.device("meta"), torch.device("cpu")
aten = torch.ops.aten

READS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.is_nonzero.default,
    aten.equal.default, aten._unique2.default, aten.unique_consecutive.default, aten.repeat_interleave.Tensor,
}  # fmt: skip
"""Operations whose result, or whose size, the host has to wait for."""

INDEXING = {
    aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}  # fmt: skip
COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}


class Elsewhere(Tensor):
    """A tensor that claims ``DEVICE`` and whose values are ``inner``, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        own = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        own.inner = inner
        return own

    def __repr__(self) -> str:
        return f"Elsewhere({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _watching().run(function, args, kwargs or {})

    def tolist(self) -> Any:
        _watching().note("read")
        return self.inner.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a tensor of another device has no numpy array; copy it to the CPU first")


class Watch(TorchDispatchMode):
    """What happens on the device inside the block.

    Attributes:
        counts: ``read`` (the host waits), ``upload`` and ``download`` (a copy each way), ``op`` and ``fp64 op``.
        places: the same by line of the library.
    """

    current: Watch | None = None

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter = collections.Counter()
        self.places: collections.Counter = collections.Counter()

    def __enter__(self) -> Watch:
        Watch.current = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        Watch.current = None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return self.run(function, args, kwargs or {})

    def note(self, kind: str) -> None:
        """One more of ``kind``, at the innermost line of the library; operations are too many to look for theirs."""
        self.counts[kind] += 1
        if not kind.endswith("op"):
            self.places[kind, _place()] += 1

    def told(self, kind: str) -> str:
        """The lines at which ``kind`` was counted, most first."""
        own = [(count, place) for (name, place), count in self.places.items() if name == kind]
        return "\n".join(f"{count:5} {place}" for count, place in sorted(own, reverse=True))

    def run(self, function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The operation on the values, its result where it belongs."""
        flat, _ = tree_flatten((args, kwargs))
        tensors = [own for own in flat if isinstance(own, Tensor)]
        there = any(isinstance(own, Elsewhere) for own in tensors)
        kwargs = dict(kwargs)
        target = there
        if kwargs.get("device") is not None:
            target = torch.device(kwargs["device"]).type == DEVICE.type
            kwargs["device"] = CPU
        if function is aten.copy_.default:
            target = isinstance(args[0], Elsewhere)
        self._check(function, args, kwargs, tensors, there, target)
        self._count(function, args, tensors, there, target)
        inner = tree_map(_inner, (args, kwargs))
        result = function(*inner[0], **inner[1])
        if not target:
            return result
        # An operation in place returns the tensor that it was given.
        own = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, Elsewhere)}
        return tree_map(lambda value: own[id(value)] if id(value) in own else _there(value), result)

    def _check(
        self, function: Any, args: tuple, kwargs: dict, tensors: list[Tensor], there: bool, target: bool
    ) -> None:
        generator = kwargs.get("generator")
        if generator is not None and (there or target):
            raise RuntimeError(f"{function}: a generator of the CPU for a tensor of the device, at {_place()}")
        mixed = {isinstance(own, Elsewhere) for own in tensors if own.dim() or isinstance(own, Elsewhere)}
        if len(mixed) < 2 or function in COPIES:
            return
        if function in INDEXING and isinstance(args[0], Elsewhere):
            values = args[2] if len(args) > 2 else None
            if values is None or isinstance(values, Elsewhere) or values.dim() == 0:
                self.note("upload")  # Indices of the CPU are copied over.
                return
        shapes = [("device" if isinstance(own, Elsewhere) else "cpu") + str(tuple(own.shape)) for own in tensors]
        raise RuntimeError(f"{function}: operands on two devices, {shapes}, at {_place()}")

    def _count(self, function: Any, args: tuple, tensors: list[Tensor], there: bool, target: bool) -> None:
        if function in COPIES:
            source = isinstance(args[1] if function is aten.copy_.default else args[0], Elsewhere)
            if source != target:
                self.note("download" if source else "upload")
        if not there:
            return
        if function in READS:
            self.note("read")
        if function in INDEXING and any(own is not None and own.dtype in (torch.bool, torch.uint8) for own in args[1]):
            self.note("read")  # The number of True values decides a size.
        if any(isinstance(own, Elsewhere) and own.dtype == torch.float64 for own in tensors):
            self.note("fp64 op")
        self.note("op")


def _watching() -> Watch:
    # Results are also looked at after the block; nothing is counted then.
    return Watch.current or Watch()


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value


def _there(value: Any) -> Any:
    return Elsewhere(value) if isinstance(value, Tensor) and not isinstance(value, Elsewhere) else value


def _place() -> str:
    frame, library = sys._getframe(1), f"{ROOT}/unigrpo/"
    while frame is not None:
        if frame.f_code.co_filename.startswith(library):
            return f"{frame.f_code.co_filename.removeprefix(library)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside the library"


def moved(module: nn.Module) -> nn.Module:
    """``module`` with its parameters and buffers elsewhere, in place."""
    for own in module.modules():
        for name, parameter in own._parameters.items():
            if parameter is not None:
                own._parameters[name] = nn.Parameter(Elsewhere(parameter.data), requires_grad=parameter.requires_grad)
        for name, buffer in own._buffers.items():
            if buffer is not None:
                own._buffers[name] = Elsewhere(buffer)
    return module


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """The block on the fake device, watched. ``meta`` has no autocast and ``torch.tensor`` does not ask a mode."""
    real_autocast, real_tensor = torch.autocast, torch.tensor

    def autocast(device_type: str, *args: Any, **kwargs: Any):
        return contextlib.nullcontext() if device_type == DEVICE.type else real_autocast(device_type, *args, **kwargs)

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        own = real_tensor(data, *args, **kwargs)
        if device is None or torch.device(device).type != DEVICE.type:
            return own
        _watching().note("upload")
        return Elsewhere(own)

    torch.autocast, torch.tensor = autocast, tensor
    try:
        with Watch() as watch:
            yield watch
    finally:
        torch.autocast, torch.tensor = real_autocast, real_tensor
