"""An optimizer step of fine-tuning on given answers: the trainer's own against logits of every position."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from unigrpo import MaskedDenoisingConfig, MaskedDenoisingTrainer
from unigrpo.training.given_step import GivenStep
from unigrpo.types import keyed_generator

from .bench import Bench, words
from .cases_update import agree, measured, vocabulary
from .measure import EXACT, Result, compared, interleave
from .plain import Clock, DenoisingRows, denoising


KINDS = {"text": "llada", "pictures": "mmada_cot"}
"""Rows of text under LLaDA's loss, and pictures to draw beside questions about pictures under MMaDA's."""


class Codes(nn.Module):
    """Stands for an image tokenizer, of 16 pixels a code: its work is the same on both sides, and is left out."""

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(codebook_size=codebook_size, name_or_path="codes")

    def code_grid(self, height: int, width: int) -> tuple[int, int]:
        return height // 16, width // 16

    def encode(self, pixels: Tensor) -> Tensor:
        grid = self.code_grid(*pixels.shape[-2:])
        count = (len(pixels), grid[0] * grid[1])
        return torch.randint(self.config.codebook_size, count, generator=keyed_generator("benchmark", "codes"))


def rows_of(bench: Bench, kind: str) -> list[dict[str, Any]]:
    """Rows with answers of several lengths: half of a row is prompt at most, and padding fills it up."""
    sizes, rows = bench.sizes, []
    for number in range(sizes.sft_rows[kind]):
        given = " ".join(f"w{word}" for word in words(sizes.sft_prompt, seed=10 + number).tolist())
        answer = " ".join(f"w{word}" for word in words(1 + sizes.sft_prompt * (number % 4) // 4, seed=50 + number))
        row = {"prompt": given, "completion": answer}
        if kind == "pictures":
            row |= {"image": Image.new("RGB", (16, 16), (number, 0, 0))}
            row = {**row, "task": "mmu"} if number % 2 else {"prompt": given, "image": row["image"], "task": "t2i"}
        rows.append(row)
    return rows


def sft_trainer(bench: Bench, kind: str) -> MaskedDenoisingTrainer:
    """A trainer of one micro-batch a step."""
    sizes = bench.sizes
    side = 16 * round(sizes.sft_codes**0.5)
    args = MaskedDenoisingConfig(
        tempfile.gettempdir(),
        objective=KINDS[kind],
        per_device_train_batch_size=sizes.sft_rows[kind],
        gradient_accumulation_steps=1,
        max_length=sizes.sft_length[kind],
        image_tokenizer=Codes(bench.policy.codebook_size) if kind == "pictures" else None,
        image_size=side,
        use_cpu=bench.device.type == "cpu",
        report_to="none",
        save_strategy="no",
    )
    return MaskedDenoisingTrainer(bench.model, args, rows_of(bench, kind), processing_class=bench.policy.processor)


def step(trainer: MaskedDenoisingTrainer, number: int = 0) -> Tensor:
    """Loss of an optimizer step as the trainer makes it, its rows written anew; gradients are left on the weights."""
    trainer._step = None
    given, total = trainer._given(number), torch.zeros(())
    for unit in (unit for units in given.micro_batches for unit in units):
        total += trainer._backward(trainer.model, given, unit, last=False)
    return total


def plain_rows(bench: Bench, trainer: MaskedDenoisingTrainer, given: GivenStep) -> DenoisingRows:
    """The same rows as the public code has them: all tasks in one batch, padded to one length under a true mask."""
    rows = given.experiences
    length = max(len(row.ids) for row in rows)

    def stacked(values: Callable[[Any], Tensor], fill: float) -> Tensor:
        padded = [nn.functional.pad(values(row), (0, length - len(row.ids)), value=fill) for row in rows]
        return torch.stack(padded).to(bench.device)

    objectives, divisors = trainer.writer.objectives, given.divisors
    weights = {id(row): objectives[row.task].coefficient / divisors[row.task] for row in rows}
    real = stacked(lambda row: row.attention_mask, False)
    return DenoisingRows(
        ids=stacked(lambda row: row.ids, bench.policy.pad_token_id),
        hidden=stacked(lambda row: row.hidden[0, 0], False),
        weight=stacked(lambda row: row.weight[0, 0] * weights[id(row)], 0.0),
        bias=None if bool(real.all()) else real[:, None, None, :].expand(-1, 1, length, -1),
    )


def sft(bench: Bench) -> list[Result]:
    """Text, and pictures beside questions about them, all weights trained."""
    return [_step_of(bench, kind) for kind in KINDS]


def _step_of(bench: Bench, kind: str) -> Result:
    with vocabulary(bench.model, trainable=True):
        trainer = sft_trainer(bench, kind)
        given, clock = trainer._given(0), Clock()
        rows = plain_rows(bench, trainer, given)
        sides = {
            "plain": lambda: measured(bench.model, lambda: denoising(bench.plain, rows, clock)),
            "ours": lambda: measured(bench.model, lambda: step(trainer)),
        }
        timed = interleave(sides, bench.sizes.rounds)
    bench.model.eval()
    scored, length = int((rows.weight > 0).sum()), rows.ids.shape
    note = f"{length[0]} rows of {length[1]} positions, {scored} scored; forward and backward"
    checks = agree(timed["ours"].value, timed["plain"].value)
    extra = {"scored_share": scored / rows.ids.numel()}
    return compared(f"sft, {kind}", EXACT, timed, checks=checks, note=note, extra=extra, goal=2.0, floor=1.6)
