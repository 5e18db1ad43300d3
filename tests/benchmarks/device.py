"""The library alone at a large size: tokens and images a second, peak memory, share of the arithmetic limit, hottest parts.

Weights are random and made on the device, so nothing is loaded; speed does not depend on their values.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig
from torch.profiler import ProfilerActivity, profile

from unigrpo.models import MMaDAConfig, MMaDAForMaskedDiffusion, MMaDAPolicy, MMaDAProcessor
from unigrpo.models.adapters import add_adapter
from unigrpo.samplers import MaskGIT, SemiAutoregressive
from unigrpo.types import Canvas

from ..support.tiny import golden_tokenizer
from .cases_images import GUIDANCE
from .cases_update import update
from .flops import FlopMeter
from .measure import environment
from .mid import MID, Bench, Sizes, image_canvas, streams, text_canvas, tiny_bench, update_batch


DEVICE_SIZES: dict[str, dict[str, int]] = {"8b": {}, "mid": MID}
"""Fields of ``MMaDAConfig`` beside its defaults, which are MMaDA-8B's. ``tiny`` is the goldens' model."""

PEAK_TFLOPS = 790.0
"""Dense bf16 matrix products that an H200 sustains; the default of ``--peak-tflops``."""

LORA_RANK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """Text: ``rows`` answers; t2i: ``rows`` images; update: ``rows`` rows, all weights or an adapter trained."""

    rows: int = 8
    prompt: int = 256
    answer: int = 256
    steps: int = 128
    block_length: int = 32
    image_tokens: int = 1024
    caption: int = 23
    slots: int = 512
    image_steps: int = 50
    update_length: int = 512


LARGE = Loads()
SMALL = Loads(
    rows=2,
    prompt=8,
    answer=8,
    steps=4,
    block_length=4,
    image_tokens=16,
    caption=3,
    slots=16,
    image_steps=2,
    update_length=24,
)


def random_bench(size: str, device: str) -> Bench:
    """A model with random weights made on ``device``: bf16 on a GPU, fp32 elsewhere."""
    if size == "tiny":
        bench = tiny_bench()
        return replace(bench, model=bench.model.to(device))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.startswith("cuda") else torch.float32)
    try:
        with torch.device(device):
            model = MMaDAForMaskedDiffusion(MMaDAConfig(**DEVICE_SIZES[size])).eval()
    finally:
        torch.set_default_dtype(before)
    processor = MMaDAProcessor(golden_tokenizer("real"))
    return Bench(size=size, model=model, policy=MMaDAPolicy(model.config, processor), sizes=Sizes())


Work = tuple[Callable[[int], Any], float, str]
"""Work with a divisor of its steps, what it makes, and the unit of that."""


def workloads(bench: Bench, loads: Loads, device: str) -> dict[str, Work]:
    """Rollouts by name."""
    text = text_canvas(bench, loads.rows, loads.prompt, loads.answer, whole_vocabulary=False).to(device)
    image = image_canvas(bench, loads.caption, loads.slots, loads.image_tokens, trim=True)
    image = image.take(torch.zeros(loads.rows, dtype=torch.int64)).to(device)
    blocks = -(-loads.answer // loads.block_length)

    def run(sampler: Any, canvas: Canvas):
        return sampler(bench.model, bench.policy, canvas, generators=streams(loads.rows))

    def answers(temperature: float) -> Callable[[int], Any]:
        settings = {"block_length": loads.block_length, "temperature": temperature, "stop": "never"}
        return lambda part: run(SemiAutoregressive(steps=max(loads.steps // part, blocks), **settings), text)

    def images(part: int):
        return run(MaskGIT(steps=max(loads.image_steps // part, 1), guidance_scale=GUIDANCE), image)

    written = loads.rows * loads.answer
    return {
        "rollout T=0": (answers(0.0), written, "tokens/s"),
        "rollout T=1": (answers(1.0), written, "tokens/s"),
        "t2i": (images, loads.rows, "images/s"),
    }


def update_work(bench: Bench, loads: Loads, device: str, old_pass: bool) -> Work:
    """An update of whatever weights of the model are trained; an adapter's fp32 weights meet bf16 as in a run."""
    batch = update_batch(bench, loads.rows, loads.update_length)
    moved = {name: getattr(batch, name).to(device) for name in ("canvas", "hidden", "advantages", "old_shift")}
    batch, kind = replace(batch, **moved), torch.device(device).type

    def learn(part: int):
        bench.model.zero_grad(set_to_none=True)
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            return update(bench, batch, old_pass=old_pass)

    return learn, loads.rows * loads.update_length, "tokens/s"


def adapted(bench: Bench) -> Bench:
    """The same with a LoRA on every linear layer but the head, everything else frozen; changes the model in place."""
    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules="all-linear")
    return replace(bench, model=add_adapter(bench.model, config).eval())


def device_report(size: str, device: str, loads: Loads = LARGE, peak_tflops: float = PEAK_TFLOPS) -> dict[str, Any]:
    """Rollouts, an update of all weights, and updates of an adapter. JSON types only."""
    bench = random_bench(size, device)
    described = {**environment(bench.model, bench.size), "peak_tflops": peak_tflops}
    lines = []

    def add(name: str, own: Bench, work: Work) -> None:
        lines.append({"name": name, **_measured(own.model, work, device, peak_tflops)})

    for name, work in workloads(bench, loads, device).items():
        add(name, bench, work)
    add("update, full", bench, update_work(bench, loads, device, old_pass=True))
    bench = adapted(bench)
    for name, old_pass in {"update, LoRA": True, "update, LoRA, 1 iteration": False}.items():
        add(name, bench, update_work(bench, loads, device, old_pass))
    return {"environment": described, "device": lines}


def _measured(model: torch.nn.Module, load: Work, device: str, peak_tflops: float) -> dict[str, Any]:
    """``load`` with a few steps for warmth and for the profile, then timed whole; gradients are dropped after."""
    work, amount, unit = load
    work(16)
    hottest = hottest_parts(lambda: work(16), device)
    meter = FlopMeter(model=model)
    with meter.counting():
        seconds, peak = timed(lambda: work(1), device)
    model.zero_grad(set_to_none=True)
    tflops = meter.total() / seconds / 1e12
    return {
        "trained": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "seconds": seconds,
        "rate": amount / seconds,
        "unit": unit,
        "peak_gb": peak,
        "tflops": tflops,
        "share_of_limit": tflops / peak_tflops,
        "hottest": hottest,
    }


def timed(work: Callable[[], Any], device: str) -> tuple[float, float]:
    """Seconds of ``work`` and the peak memory in GB: allocated on a GPU, resident elsewhere."""
    if not device.startswith("cuda"):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**30


def hottest_parts(work: Callable[[], Any], device: str, count: int = 8) -> list[dict[str, Any]]:
    """The operations and kernels that take the most time of their own, with their shares."""
    cuda = device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as recorded:
        work()
        if cuda:
            torch.cuda.synchronize()
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    spent = {event.key: getattr(event, key) for event in recorded.key_averages()}
    total = sum(spent.values()) or 1.0
    top = sorted(spent, key=spent.get, reverse=True)[:count]
    return [{"part": name, "share": spent[name] / total, "ms": spent[name] / 1000} for name in top]
