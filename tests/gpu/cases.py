"""The work whose speed is measured, ours and the plain implementation's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from unigrpo.samplers import MaskGIT

from ..benchmarks.bench import Bench, image_canvas, text_canvas, update_batch
from ..benchmarks.cases_images import draw, plain_draw
from ..benchmarks.cases_text import fill, plain_fill
from ..benchmarks.cases_update import update
from ..benchmarks.plain import Clock
from ..benchmarks.plain import update as plain_update


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A sampler at work.

    Attributes:
        work: all of it.
        plain: the same by the plain implementation, whose forwards tick the clock; None where it has no such thing.
        amount: tokens or images that it writes.
        steps: forwards of its whole schedule.
        block: forwards that stand for all of them, measured first.
        counted: whether its operations are known.
    """

    name: str
    work: Callable[[], Any]
    plain: Callable[[Clock], Any] | None
    amount: float
    unit: str
    steps: int
    block: int
    counted: bool = True
    note: str = ""


def autocast(bench: Bench, on: bool = True) -> torch.autocast:
    """bf16 where fp32 weights of an adapter meet bf16 ones, as ``bf16: true`` has it; a CPU stays in fp32."""
    return torch.autocast(bench.device.type, torch.bfloat16, enabled=on and bench.device.type == "cuda")


def text(
    bench: Bench,
    name: str,
    *,
    temperature: float = 0.0,
    beside: bool = False,
    cast: bool = False,
    counted: bool = True,
    note: str = "",
    **settings: Any,
) -> Rollout:
    """Answers, ``beside`` the plain implementation or not; the steps of one block stand for all."""
    sizes = bench.sizes
    canvas = text_canvas(bench, sizes.batch, sizes.prompt, sizes.answer, whole_vocabulary=False)

    def work() -> Any:
        with autocast(bench, cast):
            return fill(bench, canvas, temperature=temperature, **settings)

    return Rollout(
        name=name,
        work=work,
        plain=partial(plain_fill, bench, canvas, temperature) if beside else None,
        amount=sizes.batch * sizes.answer,
        unit="tokens/s",
        steps=sizes.steps,
        block=max(sizes.steps // -(-sizes.answer // sizes.block_length), 1),
        counted=counted,
        note=note,
    )


def images(bench: Bench) -> Rollout:
    """Guided pictures, ours without the padding that the plain side has."""
    sizes = bench.sizes
    own, padded = (
        image_canvas(bench, sizes.trimmed_caption, sizes.trimmed_slots, sizes.image_tokens, trim, sizes.batch)
        for trim in (True, False)
    )
    return Rollout(
        name="t2i, guidance",
        work=partial(draw, bench, own, MaskGIT),
        plain=partial(plain_draw, bench, padded),
        amount=sizes.batch,
        unit="images/s",
        steps=sizes.image_steps,
        block=min(sizes.image_steps, 8),
    )


UNSURE = "approximate; random weights are never so sure, so no step falls away here"


def rollouts(bench: Bench) -> list[Rollout]:
    """Text exact at both temperatures, with shortcuts, and pictures.

    Shortcuts are beside the same plain loop at T = 0, which is measured once.
    """
    return [
        text(bench, "rollout T=0", beside=True),
        text(bench, "rollout T=1", temperature=1.0, beside=True),
        text(bench, "rollout T=0, dual cache", kv_cache="dual", counted=False, note="approximate"),
        text(bench, "rollout T=0, threshold 0.9", confidence_threshold=0.9, note=UNSURE),
        images(bench),
    ]


def adapted_rollouts(bench: Bench) -> list[Rollout]:
    """Text at T = 1 through an adapter, whose fp32 weights compute in bf16 or not."""
    return [
        text(bench, f"rollout T=1, LoRA, {name}", temperature=1.0, cast=on)
        for name, on in {"autocast": True, "no autocast": False}.items()
    ]


def learner(bench: Bench, kind: str) -> Callable[[], Any]:
    """The loss step of whatever weights are trained: with the ``"old pass"``, where ``"old = new"``, or the ``"plain"`` one."""
    batch = update_batch(bench, bench.sizes.update_rows, bench.sizes.update_length)

    def learn() -> torch.Tensor:
        bench.model.zero_grad(set_to_none=True)
        with autocast(bench):
            if kind == "plain":
                return plain_update(bench.plain, batch, Clock())
            return update(bench, batch, old_pass=kind == "old pass")

    return learn
