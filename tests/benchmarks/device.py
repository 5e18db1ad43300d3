"""The library alone at a large size: tokens and images a second, peak memory, share of the arithmetic limit, hottest parts.

Weights are random and made on the device, so nothing is loaded; speed does not depend on their values.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from unigrpo.models import MMaDAConfig, MMaDAForMaskedDiffusion, MMaDAPolicy, MMaDAProcessor
from unigrpo.samplers import MaskGIT, SemiAutoregressive
from unigrpo.types import Canvas

from ..tiny import golden_tokenizer
from .cases_images import GUIDANCE
from .cases_update import update
from .measure import environment
from .mid import MID, Bench, Sizes, image_canvas, streams, text_canvas, tiny_bench, update_batch


DEVICE_SIZES: dict[str, dict[str, int]] = {"8b": {}, "mid": MID}
"""Fields of ``MMaDAConfig`` beside its defaults, which are MMaDA-8B's. ``tiny`` is the goldens' model."""

PEAK_TFLOPS = 790.0
"""Dense bf16 matrix products that an H200 sustains; the default of ``--peak-tflops``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """Text: ``rows`` answers; t2i: ``rows`` images; update: ``rows`` rows with an old pass, all weights trained."""

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


@dataclass(slots=True, kw_only=True)
class FlopMeter:
    """Floating-point operations of a model's forwards, counted while ``counting``; kept on the device until read.

    A forward of T tokens in rows of L is 2 T (weights of the trunk) + 4 T L d a layer for attention, and 2 d a selected row
    and column of the head.
    """

    config: MMaDAConfig
    trunk: int
    fixed: float = 0.0
    head: list[Tensor] = field(default_factory=list)

    @contextmanager
    def counting(self, model: torch.nn.Module) -> Iterator[FlopMeter]:
        """Counts every call of ``model``."""
        hook = model.register_forward_hook(self._count, with_kwargs=True)
        try:
            yield self
        finally:
            hook.remove()

    def _count(self, module, args, kwargs, output) -> None:
        rows, length = kwargs["input_ids"].shape
        space, config = kwargs.get("token_space"), self.config
        width = config.vocab_size if space is None else space.width
        attention = 4 * length * config.d_model * config.n_layers
        # Guidance is combined before the head, which then sees half of the selected rows.
        pairs = 2 if kwargs.get("guidance_scale") is not None else 1
        columns = 2 * config.d_model * width / pairs
        gradient = 3.0 if torch.is_grad_enabled() else 1.0
        self.fixed += gradient * rows * length * (2 * self.trunk + attention)
        self.head.append(gradient * columns * kwargs["select"].sum())

    def total(self) -> float:
        """FLOP so far; a forward that makes gradients counts three times."""
        return self.fixed + sum(float(flop) for flop in self.head)


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


def workloads(bench: Bench, loads: Loads, device: str) -> dict[str, tuple[Callable[[int], Any], float, str]]:
    """Name -> work with a divisor of its steps, what it makes, and the unit of that."""
    text = text_canvas(bench, loads.rows, loads.prompt, loads.answer, whole_vocabulary=False).to(device)
    image = image_canvas(bench, loads.caption, loads.slots, loads.image_tokens, trim=True)
    image = image.take(torch.zeros(loads.rows, dtype=torch.int64)).to(device)
    batch = update_batch(bench, loads.rows, loads.update_length)
    batch = replace(
        batch,
        **{name: getattr(batch, name).to(device) for name in ("canvas", "hidden", "advantages", "old_shift")},
    )
    blocks = -(-loads.answer // loads.block_length)

    def run(sampler: Any, canvas: Canvas):
        return sampler(bench.model, bench.policy, canvas, generators=streams(loads.rows))

    def answers(temperature: float) -> Callable[[int], Any]:
        settings = {"block_length": loads.block_length, "temperature": temperature, "stop": "never"}
        return lambda part: run(SemiAutoregressive(steps=max(loads.steps // part, blocks), **settings), text)

    def images(part: int):
        return run(MaskGIT(steps=max(loads.image_steps // part, 1), guidance_scale=GUIDANCE), image)

    def learn(part: int, old_pass: bool = True):
        bench.model.zero_grad(set_to_none=True)
        return update(bench, batch, old_pass=old_pass)

    written, seen = loads.rows * loads.answer, loads.rows * loads.update_length
    return {
        "rollout T=0": (answers(0.0), written, "tokens/s"),
        "rollout T=1": (answers(1.0), written, "tokens/s"),
        "t2i": (images, loads.rows, "images/s"),
        "update": (learn, seen, "tokens/s"),
        "update, 1 iteration": (lambda part: learn(part, old_pass=False), seen, "tokens/s"),
    }


def device_report(size: str, device: str, loads: Loads = LARGE, peak_tflops: float = PEAK_TFLOPS) -> dict[str, Any]:
    """Every workload once for warmth and profile with a few steps, then timed whole. JSON types only."""
    bench = random_bench(size, device)
    head = bench.model.get_output_embeddings().weight.numel()
    trunk = sum(p.numel() for p in bench.model.parameters()) - 2 * head
    lines = []
    for name, (work, amount, unit) in workloads(bench, loads, device).items():
        work(16)
        hottest = hottest_parts(lambda work=work: work(16), device)
        meter = FlopMeter(config=bench.model.config, trunk=trunk)
        with meter.counting(bench.model):
            seconds, peak = timed(lambda work=work: work(1), device)
        tflops = meter.total() / seconds / 1e12
        lines.append(
            {
                "name": name,
                "seconds": seconds,
                "rate": amount / seconds,
                "unit": unit,
                "peak_gb": peak,
                "tflops": tflops,
                "share_of_limit": tflops / peak_tflops,
                "hottest": hottest,
            }
        )
        bench.model.zero_grad(set_to_none=True)
    return {"environment": {**environment(bench.model, bench.size), "peak_tflops": peak_tflops}, "device": lines}


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
