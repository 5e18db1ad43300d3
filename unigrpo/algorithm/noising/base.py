"""What every noising scheme shares: rows in, stored noise out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...parts import check_keys, internal, key
from ...types import Noise, Rollout, TokenSpace, keyed_generator


Key = tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One row of a rollout, on the CPU, all ``[L]``.

    Attributes:
        completion: bool, the tokens that count.
        fill: bool, all written positions, the tail after a stop token included.
        prompt: bool, what was read.
        step_map: int64, the step that wrote each token, -1 elsewhere.
        block: int64, the block of each written position, -1 elsewhere; None where the model's attention is not in blocks, so that
            the whole answer is one.
    """

    completion: Bool[Tensor, " L"]
    fill: Bool[Tensor, " L"]
    prompt: Bool[Tensor, " L"]
    step_map: Int[Tensor, " L"]
    block: Int[Tensor, " L"] | None = None

    @property
    def length(self) -> int:
        """n, the number of tokens that count."""
        return int(self.completion.sum())

    @property
    def tail(self) -> Bool[Tensor, " L"]:
        """Written positions after the stop token."""
        return self.fill & ~self.completion

    @property
    def in_blocks(self) -> list[Bool[Tensor, " L"]]:
        """The tokens that count, block by block."""
        if self.block is None:
            return [self.completion]
        return [self.completion & (self.block == own) for own in self.block[self.completion].unique().tolist()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One corruption of one answer.

    Attributes:
        hidden, target: ``[L]`` bool, positions corrupted and scored.
        ratio: the mask ratio asked for.
        probability: the chance of a token to be scored by this draw, one number or ``[L]``.
        share: this draw's coefficient in a mixture of the row's draws.
    """

    hidden: Bool[Tensor, " L"]
    target: Bool[Tensor, " L"]
    ratio: float
    probability: float | Float[Tensor, " L"] = 1.0
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Noising(ABC):
    """A noising scheme: how an answer is corrupted for its likelihood. A scheme of your own gives ``draws``.

    Every draw comes from private generators keyed by (seed, window, row, inner update, draw).

    Args:
        mixed: the draws of a row are mixed before the ratio, see ``mixing``.

    Attributes:
        every_step: whether ``num_samples`` 0 means every step of the rollout; else it is refused.
    """

    every_step: ClassVar[bool] = False

    weighting: str = key(
        "uniform",
        """coefficient of a scored token: "uniform" (1, or in a mixture 1 / the draws that score the token), or
        "inverse_probability" (1 / the chance that the draw scores it, in a mixture times the draw's share), which makes the
        weighted sum an unbiased estimate of the evidence lower bound where the scheme says so""",
        choices=("uniform", "inverse_probability"),
    )
    mixed: bool = internal(False)
    p_mask_prompt: float = key(
        0.0,
        "every prompt token is hidden with this probability in every draw, without being scored",
        at_least=0,
        at_most=1,
    )

    def __post_init__(self) -> None:
        check_keys(self)

    def check_draws(self, num_samples: int) -> None:
        """Raises ``ValueError`` for a number of draws that the scheme cannot make."""
        if num_samples == 0 and not self.every_step:
            raise ValueError(
                f"num_noise_samples=0 means every step of the rollout, which {type(self).__name__} does not know; give at least 1"
            )

    @abstractmethod
    def draws(self, answer: Answer, k: int, num_iterations: int, num_samples: int, key: Key) -> list[Draw]:
        """The draws of inner update ``k``; ``key`` = (seed, window, row). One without a target is left out later."""

    def __call__(
        self,
        rollout: Rollout,
        *,
        num_iterations: int,
        num_samples: int,
        key: Key,
        rows: list[int],
        blocks: Int[Tensor, "B L"] | None = None,
    ) -> Noise:
        """Noise ``[B, K, S, L]`` for ``rollout``.

        Args:
            key: (seed, window).
            rows: global row numbers ``[B]``.
            blocks: ``policy.blocks`` of the canvas.
        """
        drawn = [
            [self._update(answer, k, num_iterations, num_samples, (*key, row)) for k in range(num_iterations)]
            for answer, row in zip(answers(rollout, blocks), rows, strict=True)
        ]
        # One draw at least, which scores nothing where no row has an answer: what is read by draw finds its shape.
        most = max([1, *(len(update) for row in drawn for update in row)])
        batch, length = rollout.completion_mask.shape
        shape = (batch, num_iterations, most)
        hidden = torch.zeros(*shape, length, dtype=torch.bool)
        target, weight, ratio = hidden.clone(), torch.zeros(*shape, length), torch.zeros(shape)
        for b, updates in enumerate(drawn):
            for k, update in enumerate(updates):
                for s, draw in enumerate(update):
                    hidden[b, k, s], target[b, k, s], ratio[b, k, s] = draw.hidden, draw.target, draw.ratio
                    weight[b, k, s] = draw.target * self._weight(draw)
        if self.mixed and self.weighting == "uniform":
            weight = weight / target.sum(dim=2, keepdim=True).clamp(min=1)
        device = rollout.completion_mask.device
        return Noise(
            hidden=hidden.to(device), target=target.to(device), weight=weight.to(device), mask_ratio=ratio.to(device)
        )

    def _update(self, answer: Answer, k: int, num_iterations: int, num_samples: int, key: Key) -> list[Draw]:
        """The draws of one update, with prompt tokens hidden too."""
        drawn = self.draws(answer, k, num_iterations, num_samples, key)
        if not self.p_mask_prompt:
            return drawn
        result = []
        for s, draw in enumerate(drawn):
            generator = keyed_generator("prompt mask", *key, k, s)
            extra = independent_subset(answer.prompt, self.p_mask_prompt, generator=generator)
            result.append(replace(draw, hidden=draw.hidden | extra))
        return result

    def _weight(self, draw: Draw) -> float | Tensor:
        if self.weighting == "uniform":
            return 1.0
        return (draw.share if self.mixed else 1.0) / draw.probability


def answers(rollout: Rollout, blocks: Int[Tensor, "B L"] | None = None) -> list[Answer]:
    """The rows of a rollout, one record each; ``blocks`` are ``policy.blocks`` of its canvas."""
    canvas = rollout.canvas
    prompt = canvas.attention_mask & ~canvas.fill_mask
    columns = {
        "completion": rollout.completion_mask,
        "fill": canvas.fill_mask,
        "prompt": prompt,
        "step_map": rollout.step_map,
    }
    if blocks is not None:
        columns["block"] = blocks.masked_fill(~canvas.fill_mask, -1)
    rows = zip(*(column.cpu() for column in columns.values()), strict=True)
    return [Answer(**dict(zip(columns, row, strict=True))) for row in rows]


def random_subset(candidates: Bool[Tensor, " L"], count: int, *, generator: torch.Generator) -> Bool[Tensor, " L"]:
    """Exactly ``count`` of the True positions, uniformly at random."""
    positions = candidates.nonzero().squeeze(1)
    chosen = positions[torch.randperm(len(positions), generator=generator)[:count].to(positions.device)]
    return torch.zeros_like(candidates).index_fill(0, chosen, True)


def independent_subset(
    candidates: Bool[Tensor, " L"], chance: int | float | Float[Tensor, " L"], *, generator: torch.Generator
) -> Bool[Tensor, " L"]:
    """Each True position with its own ``chance``. Draws there alone, so that padding does not move a row's stream."""
    chosen = torch.zeros_like(candidates)
    chances = chance[candidates] if isinstance(chance, Tensor) else chance
    chosen[candidates] = torch.rand(int(candidates.sum()), generator=generator) < chances
    return chosen


def random_corruption(
    hidden: Bool[Tensor, "... L"], ids: Int[Tensor, " L"], space: TokenSpace, *, generator: torch.Generator
) -> Int[Tensor, "... L"]:
    """``ids`` with uniformly random tokens of ``space`` at ``hidden``: corruption for models without a mask id.

    Nothing is drawn for other positions, so that padding does not move the noise.
    """
    noise = space.draw(int(hidden.sum()), generator=generator).to(ids)
    return ids.expand(hidden.shape).masked_scatter(hidden, noise)
