"""The rollouts whose speed is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unigrpo.samplers import SemiAutoregressive

from ..benchmarks.device import Loads, workloads
from ..benchmarks.mid import Bench, streams, text_canvas
from .device import autocast
from .plain_side import Plain, plain_images, plain_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A sampler at work.

    Attributes:
        work: all of it.
        plain: the same by the plain implementation, None where it has no such thing.
        amount: tokens or images that it writes.
        steps: forwards of its whole schedule.
        block: forwards that stand for all of them, measured first.
        counted: whether its operations are known.
    """

    name: str
    work: Callable[[], Any]
    plain: Plain | None
    amount: float
    unit: str
    steps: int
    block: int
    counted: bool = True
    note: str = ""


def text(loads: Loads, name: str, work: Callable[[], Any], plain: Plain | None = None, **more: Any) -> Rollout:
    """Answers; the steps of one block stand for all."""
    blocks = -(-loads.answer // loads.block_length)
    return Rollout(
        name=name,
        work=work,
        plain=plain,
        amount=loads.rows * loads.answer,
        unit="tokens/s",
        steps=loads.steps,
        block=max(loads.steps // blocks, 1),
        **more,
    )


def rollouts(bench: Bench, loads: Loads, device: str) -> list[Rollout]:
    """Text exact at both temperatures, with shortcuts, and pictures."""
    own = workloads(bench, loads, device)
    canvas = text_canvas(bench, loads.rows, loads.prompt, loads.answer, whole_vocabulary=False).to(device)

    def shortcut(**settings: Any) -> Callable[[], Any]:
        usual = {"steps": loads.steps, "block_length": loads.block_length, "temperature": 0.0, "stop": "never"}
        sampler = SemiAutoregressive(**usual, **settings)
        return lambda: sampler(bench.model, bench.policy, canvas, generators=streams(loads.rows))

    def whole(name: str) -> Callable[[], Any]:
        return lambda: own[name][0](1)

    # Shortcuts are beside the same plain loop at T = 0, which is measured once.
    return [
        text(loads, "rollout T=0", whole("rollout T=0"), plain_text(bench, loads, device, 0.0)),
        text(loads, "rollout T=1", whole("rollout T=1"), plain_text(bench, loads, device, 1.0)),
        text(loads, "rollout T=0, dual cache", shortcut(kv_cache="dual"), counted=False, note="approximate"),
        text(
            loads,
            "rollout T=0, threshold 0.9",
            shortcut(confidence_threshold=0.9),
            note="approximate; random weights are never so sure, so no step falls away here",
        ),
        Rollout(
            name="t2i, guidance",
            work=whole("t2i"),
            plain=plain_images(bench, loads, device),
            amount=loads.rows,
            unit="images/s",
            steps=loads.image_steps,
            block=min(loads.image_steps, 8),
        ),
    ]


def adapted_rollouts(bench: Bench, loads: Loads, device: str) -> list[Rollout]:
    """Text at T = 1 through an adapter, whose fp32 weights compute in bf16 or not."""
    own = workloads(bench, loads, device)["rollout T=1"][0]

    def through(on: bool) -> Callable[[], Any]:
        def work() -> Any:
            with autocast(device, on):
                return own(1)

        return work

    return [
        text(loads, "rollout T=1, LoRA, autocast", through(True)),
        text(loads, "rollout T=1, LoRA, no autocast", through(False)),
    ]
