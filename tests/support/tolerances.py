"""How near is equal: bounds that follow from the arithmetic, so that they hold on every processor."""

from __future__ import annotations

import torch
from torch import Tensor


FP32 = 1e-5
"""Of the largest value: fp32 sums of some hundred terms through a few layers, in another order, err by 2**-24 times about 160."""

BF16_RMS, BF16_MAX = 2**-8, 2**-5
"""Of the largest value. bf16 keeps 8 bits, so a result is within one step in the mean and eight steps at worst, whatever order
or width a processor's kernels sum in (seen: 0.04 to 0.25 % and 0.2 to 1.7 %)."""


def assert_rounding(found: Tensor, expected: Tensor, relative: float = FP32) -> None:
    """The two are one result rounded in two ways: they differ by at most ``relative`` of the largest expected value.

    Closed columns (-inf, or the least number of the type) must be equal and do not count as large.
    """
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    ordinary = expected.abs() < 1e30
    assert torch.equal(found[~ordinary], expected[~ordinary])
    slack = relative * float(expected[ordinary].abs().max())
    torch.testing.assert_close(found[ordinary], expected[ordinary], atol=slack, rtol=0)
