"""What must be the same on the CPU and on the device, on the tiny model; each law is one function.

Models are the goldens', so nothing is loaded from elsewhere. On a CPU both sides are one, and every law has to hold too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.samplers import Emerge, MaskGIT, SemiAutoregressive
from unigrpo.types import Canvas

from ..benchmarks.cases_update import update
from ..benchmarks.measure import relative_error
from ..benchmarks.mid import Bench, image_canvas, streams, text_canvas, tiny_bench, update_batch
from ..support.images import tiny_tokenizer
from ..support.tiny import golden, tiny_model
from .device import moved


ROWS = 6
ANSWER, BLOCK = 16, 8
LENGTH = 48
"""Positions of an update's row."""

FP32 = 1e-4
"""Of the largest value: sums in another order, through a few layers."""

BF16_STEP = 2**-8
"""bf16 keeps eight bits; differences are counted in steps of this share of the largest value."""

TF32 = 2**-7
"""Of the largest value: TF32 keeps ten bits, and eight steps of them at worst. cuDNN's default for convolutions."""


class Law(NamedTuple):
    """What was looked at, whether it holds, the figure that says so and the largest one allowed."""

    name: str
    passed: bool
    measured: float
    bound: float


def at_most(name: str, measured: float, bound: float) -> Law:
    """``measured`` must not exceed ``bound``; NaN does."""
    return Law(name, bool(measured <= bound), float(measured), float(bound))


def tiny_on(device: str, dtype: torch.dtype = torch.float32) -> Bench:
    """The goldens' model on ``device``."""
    return replace(tiny_bench(), model=tiny_model(dtype).to(device))


# ---- the same tokens ----


def unequal(device: str, sampler: Any, canvas: Canvas) -> int:
    """Positions of ``canvas`` that the CPU and ``device`` fill with different tokens."""
    ids = []
    for place in ("cpu", device):
        bench = tiny_on(place)
        rollout = sampler(bench.model, bench.policy, canvas.to(place), generators=streams(len(canvas.ids)))
        ids.append(rollout.canvas.ids.cpu())
    return int((ids[0] != ids[1]).sum())


def text(**settings: Any) -> tuple[SemiAutoregressive, Canvas]:
    """Answers of two blocks, and their sampler."""
    canvas = text_canvas(tiny_bench(), ROWS, 8, ANSWER, whole_vocabulary=False)
    usual = {"steps": ANSWER // 2, "block_length": BLOCK, "stop": "never"}
    return SemiAutoregressive(**{**usual, **settings}), canvas


def images() -> Canvas:
    """Pictures of 16 codes behind one caption."""
    canvas = image_canvas(tiny_bench(), caption=5, slots=12, image_tokens=16, trim=True)
    return canvas.take(torch.zeros(ROWS, dtype=torch.int64))


def text_greedy(device: str) -> Law:
    """Text, block after block."""
    return at_most("text tokens at T = 0: unequal", unequal(device, *text(temperature=0.0)), 0)


def text_drawn(device: str) -> Law:
    """The random numbers are made on the CPU, so draws agree as well."""
    return at_most("text tokens at T = 1: unequal", unequal(device, *text(temperature=1.0)), 0)


def text_cached(device: str) -> Law:
    """With keys and values kept on both sides of the block."""
    found = unequal(device, *text(temperature=0.0, kv_cache="dual"))
    return at_most("text tokens at T = 0, dual cache: unequal", found, 0)


def maskgit(device: str) -> Law:
    """Pictures by confidence, guided."""
    found = unequal(device, MaskGIT(steps=4, temperature=0.0), images())
    return at_most("MaskGIT's codes at T = 0: unequal", found, 0)


def emerge(device: str) -> Law:
    """Pictures in random order, guided."""
    found = unequal(device, Emerge(steps=4, temperature=0.0), images())
    return at_most("Emerge's codes at T = 0: unequal", found, 0)


# ---- the same numbers ----


def scores(bench: Bench, device: str) -> dict[str, Tensor]:
    """Log-probabilities of hidden tokens, ``[n]`` fp32 on the CPU."""
    batch = moved(update_batch(bench, ROWS, LENGTH), device)
    with torch.no_grad():
        found = score_tokens(bench.model, bench.policy, batch.canvas, batch.hidden, batch.hidden)
    return {"logps": found.logps[batch.hidden].float().cpu()}


def gradients(bench: Bench, device: str) -> dict[str, Tensor]:
    """Gradients of one update of all weights by name, fp32 on the CPU."""
    update(bench, moved(update_batch(bench, ROWS, LENGTH), device), old_pass=True)
    named = bench.model.named_parameters()
    return {name: weight.grad.float().cpu() for name, weight in named if weight.grad is not None}


Numbers = Callable[[Bench, str], dict[str, Tensor]]


def furthest(device: str, numbers: Numbers) -> float:
    """Largest difference between ``device`` and CPU, of the largest value of its tensor, in fp32."""
    expected, found = numbers(tiny_on("cpu"), "cpu"), numbers(tiny_on(device), device)
    if not expected or expected.keys() != found.keys():
        return float("nan")
    return max(relative_error(found[name], expected[name]) for name in expected)


def logps_fp32(device: str) -> Law:
    """``score_tokens`` in fp32."""
    return at_most("log-probabilities in fp32, of the largest", furthest(device, scores), FP32)


def gradients_fp32(device: str) -> Law:
    """An update with its old pass in fp32."""
    return at_most("gradients in fp32, of the largest", furthest(device, gradients), FP32)


def steps_off(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Root mean square of the difference in bf16 steps of the largest value, of the worst tensor."""
    if not exact or exact.keys() != found.keys():
        return float("nan")
    off = {name: (found[name] - exact[name]).square().mean().sqrt() / exact[name].abs().max() for name in exact}
    return max(float(share) for share in off.values()) / BF16_STEP


def bf16(device: str, name: str, numbers: Numbers) -> Law:
    """bf16 on ``device`` is no further from fp32 with the same weights than twice what it is on the CPU."""
    exact = tiny_on("cpu", torch.bfloat16)
    exact = numbers(replace(exact, model=exact.model.float()), "cpu")
    own = steps_off(numbers(tiny_on("cpu", torch.bfloat16), "cpu"), exact)
    found = steps_off(numbers(tiny_on(device, torch.bfloat16), device), exact)
    return at_most(f"{name} in bf16, steps of 2**-8 from fp32", found, max(2 * own, 1.0))


def logps_bf16(device: str) -> Law:
    """``score_tokens`` in bf16."""
    return bf16(device, "log-probabilities", scores)


def gradients_bf16(device: str) -> Law:
    """An update with its old pass in bf16."""
    return bf16(device, "gradients", gradients)


# ---- pictures ----


def magvit_codes(device: str) -> Law:
    """Bits are signs, and encoding is fp32 whatever the device's defaults are."""
    arrays, _ = golden("g5_magvit")
    codes = tiny_tokenizer().to(device).encode(arrays["image"].to(device)).cpu()
    return at_most("MAGVIT's codes: unequal", int((codes != arrays["code"]).sum()), 0)


def decoded(device: str, allow_tf32: bool) -> float:
    """Largest difference of a decoded picture from the public code's, of the largest value."""
    arrays, _ = golden("g5_magvit")
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, allow_tf32
    try:
        pixels = tiny_tokenizer().to(device).decode(arrays["code"].to(device), 64, 64)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    return relative_error(pixels.cpu(), arrays["decoded"])


def magvit_exact(device: str) -> Law:
    """Decoding in full fp32."""
    return at_most("MAGVIT's pixels in fp32, of the largest", decoded(device, False), FP32)


def magvit_default(device: str) -> Law:
    """Decoding as a run does it, with cuDNN's default of TF32."""
    return at_most("MAGVIT's pixels with TF32, of the largest", decoded(device, True), TF32)


AGREEMENT = (
    text_greedy,
    text_drawn,
    text_cached,
    maskgit,
    emerge,
    logps_fp32,
    gradients_fp32,
    logps_bf16,
    gradients_bf16,
    magvit_codes,
    magvit_exact,
    magvit_default,
)
"""CPU and device agree."""
