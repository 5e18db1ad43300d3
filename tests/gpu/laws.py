"""What must be the same on the CPU and on the device, on the tiny model.

Models are the goldens', so nothing is loaded from elsewhere. On a CPU both sides are one, and every law has to hold too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.samplers import Emerge, MaskGIT, SemiAutoregressive
from unigrpo.types import Canvas

from ..benchmarks.bench import TINY, Bench, image_canvas, random_bench, streams, text_canvas, update_batch
from ..benchmarks.cases_update import update
from ..benchmarks.measure import relative_error
from ..support.images import tiny_tokenizer
from ..support.tiny import golden


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


Law = Callable[[str], tuple[float, float]]
"""What was measured on a device, and the largest figure with which the law holds; with NaN it does not."""


def tiny_on(device: str, dtype: torch.dtype = torch.float32) -> Bench:
    """The goldens' model on ``device``."""
    return random_bench("tiny", TINY, device, dtype)


# ---- the same tokens ----


def answers(bench: Bench) -> Canvas:
    """Answers of two blocks."""
    return text_canvas(bench, ROWS, 8, ANSWER, whole_vocabulary=False)


def pictures(bench: Bench) -> Canvas:
    """Pictures of 16 codes behind one caption."""
    return image_canvas(bench, caption=5, slots=12, image_tokens=16, trim=True, rows=ROWS)


def unequal(canvas_of: Callable[[Bench], Canvas], sampler: Any, device: str) -> tuple[int, int]:
    """Positions that the CPU and ``device`` fill with different tokens; random numbers are made on the CPU."""
    ids = []
    for bench in (tiny_on("cpu"), tiny_on(device)):
        rollout = sampler(bench.model, bench.policy, canvas_of(bench), generators=streams(ROWS))
        ids.append(rollout.canvas.ids.cpu())
    return int((ids[0] != ids[1]).sum()), 0


def text(**settings: Any) -> Law:
    """Answers, block after block."""
    usual = {"steps": ANSWER // 2, "block_length": BLOCK, "stop": "never", "temperature": 0.0}
    return partial(unequal, answers, SemiAutoregressive(**{**usual, **settings}))


# ---- the same numbers ----


def scores(bench: Bench) -> dict[str, Tensor]:
    """Log-probabilities of hidden tokens, ``[n]`` fp32 on the CPU."""
    batch = update_batch(bench, ROWS, LENGTH)
    with torch.no_grad():
        found = score_tokens(bench.model, bench.policy, batch.canvas, batch.hidden, batch.hidden)
    return {"logps": found.logps[batch.hidden].float().cpu()}


def gradients(bench: Bench) -> dict[str, Tensor]:
    """Gradients of one update of all weights, old pass included, by name, fp32 on the CPU."""
    update(bench, update_batch(bench, ROWS, LENGTH), old_pass=True)
    named = bench.model.named_parameters()
    return {name: weight.grad.float().cpu() for name, weight in named if weight.grad is not None}


Numbers = Callable[[Bench], dict[str, Tensor]]


def furthest(numbers: Numbers, device: str) -> tuple[float, float]:
    """Largest difference between ``device`` and CPU, of the largest value of its tensor, in fp32."""
    expected, found = numbers(tiny_on("cpu")), numbers(tiny_on(device))
    if not expected or expected.keys() != found.keys():
        return float("nan"), FP32
    return max(relative_error(found[name], expected[name]) for name in expected), FP32


def steps_off(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Root mean square of the difference in bf16 steps of the largest value, of the worst tensor."""
    if not exact or exact.keys() != found.keys():
        return float("nan")
    off = {name: (found[name] - exact[name]).square().mean().sqrt() / exact[name].abs().max() for name in exact}
    return max(float(share) for share in off.values()) / BF16_STEP


def bf16(numbers: Numbers, device: str) -> tuple[float, float]:
    """bf16 on ``device`` is no further from fp32 with the same weights than twice what it is on the CPU."""
    exact = tiny_on("cpu", torch.bfloat16)
    exact = numbers(replace(exact, model=exact.model.float()))
    own = steps_off(numbers(tiny_on("cpu", torch.bfloat16)), exact)
    return steps_off(numbers(tiny_on(device, torch.bfloat16)), exact), max(2 * own, 1.0)


# ---- pictures ----


def magvit_codes(device: str) -> tuple[int, int]:
    """Bits are signs, and encoding is fp32 whatever the device's defaults are."""
    arrays, _ = golden("g5_magvit")
    codes = tiny_tokenizer().to(device).encode(arrays["image"].to(device)).cpu()
    return int((codes != arrays["code"]).sum()), 0


def decoded(allow_tf32: bool, bound: float, device: str) -> tuple[float, float]:
    """Largest difference of a decoded picture from the public code's, of the largest value."""
    arrays, _ = golden("g5_magvit")
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, allow_tf32
    try:
        pixels = tiny_tokenizer().to(device).decode(arrays["code"].to(device), 64, 64)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    return relative_error(pixels.cpu(), arrays["decoded"]), bound


SEEN_BY_WEIGHTS: dict[str, Law] = {
    "text tokens at T = 0: unequal": text(),
    "text tokens at T = 1: unequal": text(temperature=1.0),
    "text tokens at T = 0, dual cache: unequal": text(kv_cache="dual"),
    "MaskGIT's codes at T = 0: unequal": partial(unequal, pictures, MaskGIT(steps=4, temperature=0.0)),
    "Emerge's codes at T = 0: unequal": partial(unequal, pictures, Emerge(steps=4, temperature=0.0)),
    "log-probabilities in fp32, of the largest": partial(furthest, scores),
    "gradients in fp32, of the largest": partial(furthest, gradients),
    "log-probabilities in bf16, steps of 2**-8 from fp32": partial(bf16, scores),
    "gradients in bf16, steps of 2**-8 from fp32": partial(bf16, gradients),
}
"""Each fails where the device's model has other weights."""

AGREEMENT: dict[str, Law] = {
    **SEEN_BY_WEIGHTS,
    "MAGVIT's codes: unequal": magvit_codes,
    "MAGVIT's pixels in fp32, of the largest": partial(decoded, False, FP32),
    # As a run does it, with cuDNN's default.
    "MAGVIT's pixels with TF32, of the largest": partial(decoded, True, TF32),
}
"""CPU and device agree."""
