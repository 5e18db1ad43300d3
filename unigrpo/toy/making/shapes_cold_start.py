"""Makes the shipped policy of the shapes world: ``python -m unigrpo.toy.making.shapes_cold_start``.

One small MMaDA draws pictures from captions, answers questions about pictures and adds numbers. Its teacher errs on purpose:
words of captions and answers are replaced at random with fixed probabilities. The policy learns the mistakes with their
frequencies, so its accuracy when it draws at temperature 1 starts well below what it knows, whatever the training length.
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.image_codes import ImageCodec, load_tokenizer
from ...models import MMaDAPolicy, MMaDAProcessor
from ...rollout.generate import LoadedPolicy
from ...runs.accuracy import integer_match
from ...terminal import say, tracked
from ...types import Canvas
from .. import arithmetic
from ..pixel_check import inspect
from ..shapes import COLOURS, FORMS, QUESTIONS, SHAPES, SIDE, WORDS, Spec, caption, problems, questions
from ..shapes_lessons import SHORTER, WRONG_ANSWER, WRONG_SUM, WRONG_WORD
from .cold_start import build_model
from .image_tokenizer import CHECKPOINT as IMAGE_TOKENIZER
from .image_tokenizer import directory_size, gallery
from .tokenizer import build_tokenizer


CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "shapes"

SIZES = {"n_layers": 5, "mlp_hidden_size": 344}
"""Beside ``cold_start.build_model``'s: 1.2 M parameters."""

SAMPLING = {"max_completion_length": 16, "steps": 16, "block_length": 4, "image_size": SIDE}

TRAINING = {"steps": 2000, "learning_rate": 1.5e-3}
ROWS = {"t2i": 64, "mmu": 32, "text": 32}
"""Rows a step of each task."""

WEIGHTS = {"t2i": 1.0, "mmu": 3.0, "text": 1.0}
"""Of the losses: nine in ten positions of a one-word answer are padding."""

EMPTY_CAPTION = 0.1
"""Share of pictures taught without words: the unconditional policy of classifier-free guidance."""

PICTURES_PER_SPEC = 40


class Teacher:
    """Endless rows of the three tasks, with mistakes.

    Args:
        codes: image codes ``[n, N]`` of pictures of ``specs``.
        rng: decides everything that is drawn.
    """

    def __init__(self, policy: MMaDAPolicy, specs: list[Spec], codes: Tensor, rng: random.Random) -> None:
        self.policy, self.specs, self.codes, self.rng = policy, specs, codes, rng
        self.sums = arithmetic.problems("train", 8_000)

    def batch(self, task: str, count: int) -> Canvas:
        """``count`` filled canvases: the holes hold what is to be learned."""
        rows, answers = zip(*(getattr(self, task)() for _ in range(count)), strict=True)
        if task == "t2i":
            canvas = self.policy.encode(list(rows), task, image_tokens=self.codes.shape[1])
            written = torch.stack(answers) + self.policy.config.image_token_offset
        else:
            length = SAMPLING["max_completion_length"]
            canvas = self.policy.encode(list(rows), task, max_completion_length=length)
            texts = [f"{answer}<|eot_id|>" for answer in answers]
            tokens = self.policy.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
            written = torch.tensor([own + [self.policy.pad_token_id] * (length - len(own)) for own in tokens])
        return replace(canvas, ids=canvas.ids.masked_scatter(canvas.fill_mask, written))

    def t2i(self) -> tuple[dict[str, Any], Tensor]:
        """A caption, often of fewer words, sometimes of wrong ones or none; the codes of the picture."""
        place = self.rng.randrange(len(self.specs))
        spec = self._mistaken(self.specs[place], WRONG_WORD)
        form = self.rng.choice(list(FORMS)) if self.rng.random() < SHORTER else "full"
        prompt = "" if self.rng.random() < EMPTY_CAPTION else caption(spec, form)
        return {"prompt": prompt}, self.codes[place]

    def mmu(self) -> tuple[dict[str, Any], str]:
        """A picture and a question; the answer, sometimes of wrong words."""
        place = self.rng.randrange(len(self.specs))
        question = self.rng.choice(list(QUESTIONS))
        spec = self._mistaken(self.specs[place], WRONG_ANSWER / (2 if question == "caption" else 1))
        answer = {"colour": spec.colour, "shape": spec.shape, "caption": caption(spec)}[question]
        return {"prompt": QUESTIONS[question], "image_codes": self.codes[place]}, answer

    def text(self) -> tuple[dict[str, Any], str]:
        """A sum, and its trace; sometimes that of another number added."""
        row = self.rng.choice(self.sums)
        added = self.rng.choice(arithmetic.SECOND) if self.rng.random() < WRONG_SUM else row["b"]
        return {"prompt": row["prompt"]}, arithmetic.trace({**row, "b": added})

    def _mistaken(self, spec: Spec, chance: float) -> Spec:
        if self.rng.random() < chance:
            spec = replace(spec, colour=self.rng.choice(list(COLOURS)))
        if self.rng.random() < chance:
            spec = replace(spec, shape=self.rng.choice(SHAPES))
        return spec


def masked_loss(model, policy: MMaDAPolicy, canvas: Canvas, *, generator: torch.Generator) -> Tensor:
    """MMaDA's training losses in nats: for pictures the mean over hidden codes at ratios cos(pi u / 2), for text the sum
    over hidden tokens with weight 1/t, divided by the answer's length.

    The u or t of a batch are evenly spaced from a random start; t is at least 0.05.
    """
    count = len(canvas.ids)
    spaced = (torch.arange(count) / count + torch.rand((), generator=generator)).remainder(1.0)
    ratio = torch.cos(spaced * math.pi / 2) if canvas.task == "t2i" else spaced
    ratio = ratio.clamp(min=0.05)[:, None]
    hidden = canvas.fill_mask & (torch.rand(canvas.ids.shape, generator=generator) < ratio)
    logps = model(
        **policy.inputs(canvas, hidden), select=hidden, targets=canvas.ids[hidden], token_space=canvas.token_space
    ).logps
    if canvas.task == "t2i":
        return -logps.mean()
    return -(logps / ratio.expand_as(hidden)[hidden]).sum() / canvas.fill_mask.sum()


def train(model, teacher: Teacher, *, steps: int, learning_rate: float, generator: torch.Generator) -> None:
    """All three tasks in every step, in place: a short warm-up, then linear to a twentieth of the learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    warm_up = max(steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, max(1 - step / steps, 0.05))
    )
    model.train()
    for _ in tracked(range(steps), "cold start"):
        for task, rows in ROWS.items():
            loss = masked_loss(model, teacher.policy, teacher.batch(task, rows), generator=generator)
            (WEIGHTS[task] * loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def start_figures(loaded: LoadedPolicy, count: int = 480) -> dict[str, float]:
    """Held-out shares: pictures right in colour and shape at T=1 and recognisable at all, answers and sums at T=1."""
    rows = problems("test", count)
    drawn = loaded.generate(
        [row["prompt"] for row in rows], task="t2i", temperature=1.0, guidance_scale=0.0, batch_size=120
    )
    seen = [inspect(image) for image in drawn]
    right = [(s.colour, s.shape) == (r["colour"], r["shape"]) for s, r in zip(seen, rows, strict=True)]
    asked = questions("test", count)
    figures = {"pictures": sum(right) / count, "recognisable": sum(s.valid for s in seen) / count}
    for temperature in (1.0, 0.0):
        answers = loaded.generate(
            [row["prompt"] for row in asked],
            images=[row["image"] for row in asked],
            temperature=temperature,
            batch_size=120,
        )
        hits = [answer.strip() == row["solution"] for answer, row in zip(answers, asked, strict=True)]
        sums = arithmetic.problems("test", count)
        added = loaded.generate([row["prompt"] for row in sums], temperature=temperature, batch_size=120)
        correct = [integer_match(answer, row["solution"]) for answer, row in zip(added, sums, strict=True)]
        figures |= {
            f"answers T={temperature:g}": sum(hits) / count,
            f"sums T={temperature:g}": sum(correct) / count,
        }
    return figures


def main() -> None:
    """Command line: trains and saves the shipped shapes policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=CHECKPOINT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=TRAINING["steps"])
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(args.seed)
    tokenizer = build_tokenizer(WORDS)
    image_tokenizer = load_tokenizer(str(IMAGE_TOKENIZER))
    model = build_model(
        tokenizer,
        generator=generator,
        **SIZES,
        codebook_size=image_tokenizer.config.codebook_size,
        num_vq_tokens=(SIDE // image_tokenizer.factor) ** 2,
        image_tokenizer="builtin:shapes_tokenizer",
        sampling_defaults=SAMPLING,
    )
    policy = MMaDAPolicy(model.config, MMaDAProcessor(tokenizer))
    specs, pixels = gallery(PICTURES_PER_SPEC, args.seed)
    teacher = Teacher(policy, specs, image_tokenizer.encode(pixels), random.Random(args.seed))
    train(model, teacher, **{**TRAINING, "steps": args.steps}, generator=generator)
    loaded = LoadedPolicy(model=model.eval(), policy=policy, codec=ImageCodec(image_tokenizer, policy))
    for name, value in start_figures(loaded).items():
        say(f"{name:20} {100 * value:5.1f} %")
    model.half().save_pretrained(args.output)
    # Half the bytes on disk; loaded in float32 unless told otherwise, because float16 weights do not train.
    model.config.dtype = torch.float32
    model.config.save_pretrained(args.output)
    policy.processor.save_pretrained(args.output)
    say(f"{'checkpoint':20} {directory_size(args.output) / 1e6:5.2f} MB in {args.output}")


if __name__ == "__main__":
    main()
