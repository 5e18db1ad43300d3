"""The meter of floating-point operations, against sums by hand and against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unigrpo.types import TokenSpace

from ..benchmarks.bench import Bench, text_canvas, tiny_bench, update_batch
from ..benchmarks.cases_update import update, vocabulary
from .flops import FlopMeter


@pytest.fixture(scope="module")
def bench() -> Bench:
    return tiny_bench()


def needed(bench: Bench, rows: int, length: int, selected: int, width: int) -> tuple[int, int, int]:
    """FLOP of a forward by hand: all layers but the last and its keys and values, the rest of the last, the head."""
    config = bench.model.config
    d, mlp = config.d_model, config.mlp_hidden_size
    keys, others = 2 * 2 * d * config.n_kv_heads * d // config.n_heads, 2 * (2 * d * d + 3 * d * mlp)
    attention = 4 * length * d
    whole = (config.n_layers - 1) * (keys + others + attention) + keys
    return rows * length * whole, selected * (others + attention), selected * 2 * d * width


def test_the_meter_counts_what_a_forward_computes(bench):
    canvas = text_canvas(bench, 2, 6, 4)
    meter = FlopMeter(model=bench.model)
    with meter.counting(), torch.no_grad():
        bench.model(**bench.policy.inputs(canvas), select=canvas.fill_mask, token_space=TokenSpace(start=3, stop=20))
    assert meter.total() == sum(needed(bench, 2, 10, 8, 17))
    meter = FlopMeter(model=bench.model)
    with meter.counting(), torch.no_grad():
        bench.model(**bench.policy.inputs(canvas))
    assert meter.total() == sum(needed(bench, 2, 10, 20, bench.model.config.vocab_size))


def test_the_meter_agrees_with_torch_on_the_products(bench):
    canvas = text_canvas(bench, 2, 30, 10)
    meter, counter = FlopMeter(model=bench.model), FlopCounterMode(display=False)
    # Of the fused kernels on a CPU, torch counts none.
    with meter.counting(), counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        bench.model(**bench.policy.inputs(canvas), select=canvas.fill_mask)
    assert abs(meter.total() / counter.get_total_flops() - 1) < 1e-6


def test_the_meter_counts_gradients_of_what_is_trained(bench):
    batch, meters = update_batch(bench, 2, 24), []
    every, chosen, head = needed(bench, 2, 24, int(batch.hidden.sum()), bench.model.config.vocab_size)
    for trainable in (True, False):
        meters.append(FlopMeter(model=bench.model))
        with vocabulary(bench.model, trainable), meters[-1].counting():
            update(bench, batch, old_pass=True)
    assert meters[0].total() == 4 * (every + chosen + head)
    assert meters[1].total() == 4 * (every + chosen) + 3 * head
