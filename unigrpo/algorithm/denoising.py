"""The masked-denoising objective of pre-training and fine-tuning: which tokens of a given row are hidden, what each costs.

Over the rows of one task in an optimizer step, on all processes and micro-batches together,

    loss = coefficient * sum_rows sum_t weight_t * (-log p(token_t | the row with its hidden tokens masked)) / sum_rows share

``MaskedDenoising`` says what ``weight`` and ``share`` are. LLaDA (arXiv 2502.09992, Eq. 5), MMaDA (arXiv 2505.15809, Eq. 3) and
the codes around them differ in nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..parts import check_keys, key
from .noising.base import independent_subset, random_subset
from .noising.random import check_range


COSINES = {"linear": 0, "cosine": 1, "cosine_twice": 2}
"""How often each law takes the cosine of u."""

LEAST_LEVEL = 1e-3
"""What bounds the weight 1/u, as in MMaDA-Parallel's code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """One corruption of one row, all ``[L]``.

    Attributes:
        hidden: bool, read as masks.
        target: bool, scored: what is hidden, and what is scored although it is visible.
        weight: fp32, coefficient of each scored -log p; 0 elsewhere.
        share: what the row adds to the step's divisor.
        ratio: the chance of a token to be hidden; of a fixed number of hidden tokens, their part.
    """

    hidden: Bool[Tensor, " L"]
    target: Bool[Tensor, " L"]
    weight: Float[Tensor, " L"]
    share: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedDenoising:
    """The objective of one task. n are the tokens of a row that may be hidden, l those that are, L is the row's length.

    Raises:
        ValueError: a key out of range.
    """

    law: str = key(
        "linear",
        """how much of a row is hidden, u ~ U(0, 1): "linear" hides every token with the chance p = min + (max - min) u,
        "cosine" exactly round(p n) of them, at least one, p = min + (max - min) cos(pi/2 u); "cosine_twice" every token with the chance
        p = min + (max - min) cos(pi/2 cos(pi/2 u))""",
        choices=("linear", "cosine", "cosine_twice"),
    )
    mask_ratio_min: float = key(1e-3, "min, the smallest p; LLaDA's 0.001 bounds the weight 1/p", at_least=0, below=1)
    mask_ratio_max: float = key(1.0, "max, the largest p", above=0, at_most=1)
    tries: int = key(
        1, "so often at most are p and what is hidden drawn, until something is hidden at all", at_least=1
    )
    hide_whole: int = key(0, "answers of so few tokens, or fewer, are hidden whole; 0 = none", at_least=0)
    spans: str = key(
        "together",
        """of a thought and its picture in one row: "together" under one mask ratio, or "apart", each under its own""",
        choices=("together", "apart"),
    )
    weight: str = key(
        "1/p",
        """of a hidden token: "1/p", with which the linear law bounds the likelihood, "1/u", at most 1000, "mean" (1), "1-p", or "cart": the
        more, the more tokens near it are visible""",
        choices=("1/p", "1/u", "mean", "1-p", "cart"),
    )
    cart_p: float = key(
        0.1,
        "of the weight cart: a visible token at distance d adds cart_p (1 - cart_p)^(d - 1) / 2",
        above=0,
        at_most=1,
    )
    denominator: str = key(
        "answer",
        """what a row's sum is divided by before rows are averaged: "answer" (n), "row" (L), "masked" (l) or "none" (1); or the
        sum of all rows over their scored tokens ("tokens") or over their n ("answers")""",
        choices=("answer", "row", "masked", "none", "tokens", "answers"),
    )
    train_padding: str = key(
        "all",
        """which padding after an answer is hidden and trained: "all" (it teaches when to stop, and short answers are mostly
        padding), "first" (one token), "block" (what fills the last block of a model whose attention is in blocks) or "none". Padding
        that is not trained is no part of the row. The auxiliary term of an RL run, sft_weight, trains none""",
        choices=("all", "first", "block", "none"),
    )
    train_visible: bool = key(
        False,
        """what is not hidden is scored too, with weight 1: for noise of random tokens, which does not show what it replaced""",
    )
    train_marks: bool = key(False, "the two marks around a picture to draw are scored too, although they are visible")
    caption_dropout: float = key(
        0.0,
        "chance of a caption to be replaced by the empty one, for guidance without a classifier",
        at_least=0,
        below=1,
    )
    swap_prompt: float = key(
        0.0,
        "chance of a row's prompt to be replaced by that of another row of its source, so that the thought alone tells what to draw",
        at_least=0,
        below=1,
    )
    coefficient: float = key(
        1.0, "of the task's loss in the sum over tasks; how often its rows come is another matter", at_least=0
    )

    def __post_init__(self) -> None:
        check_keys(self)
        check_range(float(self.mask_ratio_min), float(self.mask_ratio_max))
        if self.law == "linear" and self.weight == "1/p" and not self.mask_ratio_min:
            raise ValueError(
                f"mask_ratio_min={self.mask_ratio_min} with law='linear' and weight='1/p': a weight has no bound; give at least 0.0001, or weight='mean'"
            )
        if self.spans == "apart" and self.weight != "mean":
            raise ValueError(
                f"spans='apart' with weight={self.weight!r}: a row has no one chance to be hidden by; set weight='mean'"
            )
        if self.train_visible and self.weight != "mean":
            raise ValueError(
                f"train_visible=True with weight={self.weight!r}: what is visible has no chance to be hidden by; set weight='mean'"
            )

    def ratio(self, u: float) -> float:
        """p for ``u`` in [0, 1)."""
        part = u
        for _ in range(COSINES[self.law]):
            part = math.cos(math.pi / 2 * part)
        return self.mask_ratio_min + (self.mask_ratio_max - self.mask_ratio_min) * part

    def level(self, ratio: float) -> float:
        """u in [0, 1] of p: the inverse of ``ratio``."""
        part = (ratio - self.mask_ratio_min) / (self.mask_ratio_max - self.mask_ratio_min)
        for _ in range(COSINES[self.law]):
            part = math.acos(min(max(part, 0.0), 1.0)) * 2 / math.pi
        return part

    def hide(
        self,
        trained: Bool[Tensor, " L"],
        marks: Bool[Tensor, " L"] | None = None,
        codes: Bool[Tensor, " L"] | None = None,
        *,
        generator: torch.Generator,
    ) -> Hidden:
        """A random corruption of a row. The linear law may hide nothing of a short one, in all its tries: the loss is then 0.

        Args:
            trained: the n tokens that may be hidden.
            marks: scored beside them where ``train_marks``.
            codes: those of them that are a picture behind a thought; a ratio of their own where ``spans="apart"``.
        """
        for _ in range(self.tries):
            if codes is None or self.spans == "together":
                hidden, ratio = self._drawn(trained, generator)
            else:
                own = [self._drawn(part, generator)[0] for part in (trained & ~codes, trained & codes)]
                hidden = own[0] | own[1]
                ratio = int(hidden.sum()) / max(int(trained.sum()), 1)
            if bool(hidden.any()):
                break
        return self.weigh(hidden, trained, ratio, marks)

    def _drawn(self, trained: Bool[Tensor, " L"], generator: torch.Generator) -> tuple[Tensor, float]:
        """What is hidden, and p."""
        if int(trained.sum()) <= self.hide_whole:
            return trained.clone(), 1.0
        ratio = self.ratio(float(torch.rand((), dtype=torch.float64, generator=generator)))
        if self.law != "cosine":
            return independent_subset(trained, ratio, generator=generator), ratio
        n = int(trained.sum())
        count = min(max(round(ratio * n), 1), n)
        return random_subset(trained, count, generator=generator), count / max(n, 1)

    def weigh(
        self,
        hidden: Bool[Tensor, " L"],
        trained: Bool[Tensor, " L"],
        ratio: float,
        marks: Bool[Tensor, " L"] | None = None,
    ) -> Hidden:
        """What the row costs with ``hidden`` of its ``trained`` tokens hidden, each with the chance ``ratio``."""
        target = trained if self.train_visible else hidden
        if self.train_marks and marks is not None:
            target = target | marks
        scored = int(target.sum())
        n = int(trained.sum())
        parts = {"answer": n, "row": len(hidden), "masked": scored}
        weight = self._of_hidden(hidden, ratio) * target / max(parts.get(self.denominator, 1), 1)
        share = {"tokens": float(scored), "answers": float(n)}.get(self.denominator, 1.0)
        return Hidden(hidden=hidden, target=target, weight=weight.float(), share=share, ratio=ratio)

    def _of_hidden(self, hidden: Bool[Tensor, " L"], ratio: float) -> Float[Tensor, " L"]:
        """The weight of each hidden position, 1 of the others."""
        ones = torch.ones(len(hidden))
        if self.weight == "cart":
            return torch.where(hidden, self._cart(hidden), ones)
        if self.weight == "1/u":
            return torch.where(hidden, ones / max(self.level(ratio), LEAST_LEVEL), ones)
        return torch.where(hidden, {"1/p": 1 / ratio, "1-p": 1 - ratio, "mean": 1.0}[self.weight] * ones, ones)

    def _cart(self, hidden: Bool[Tensor, " L"]) -> Float[Tensor, " L"]:
        """Dream's context-adaptive weight of each position: what visible ones add, a geometric law of their distance; for hidden positions."""
        place = torch.arange(len(hidden))
        distance = (place[:, None] - place).abs()
        near = 0.5 * self.cart_p * (1 - self.cart_p) ** (distance - 1).clamp(min=0).float()
        return near @ (~hidden).float()


def denoising_sum(logps: Float[Tensor, "b L"], weight: Float[Tensor, "b L"]) -> Float[Tensor, " b"]:
    """Each row's sum of weighted -log p (nats), before the step's divisor; a weight of 0 asks for no finite log p."""
    return -torch.where(weight > 0, weight * logps, 0.0).sum(dim=1)
