"""How small policies learn given answers before rewards move them; the modules beside this one say which.

``python -m unigrpo.toy.making.cold_start`` makes ``builtin:arithmetic_trained`` from right answers alone, so that it is sure of
what it writes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models import MMaDAForMaskedDiffusion, MMaDAPolicy, MMaDAProcessor
from ...models.builtin import SHIPPED
from ...rollout.generate import LoadedPolicy
from ...terminal import say, tracked
from ...types import Canvas
from ..arithmetic import problems, trace
from .tokenizer import SAMPLING, build_config, build_tokenizer


LEARN = {"steps": 1100, "batch_size": 64, "learning_rate": 2e-3, "decay": 250}
"""Steps, rows a step, peak learning rate, and the last steps over which it falls to zero."""


def build_model(tokenizer: Any, *, generator: torch.Generator, **fields: Any) -> MMaDAForMaskedDiffusion:
    """A MMaDA around ``tokenizer``, with ``build_config``'s ``fields``; the weights depend on ``generator`` alone."""
    with torch.random.fork_rng(devices=[]):
        model = MMaDAForMaskedDiffusion(build_config(tokenizer, **fields))
    initialise(model, generator)
    return model


@torch.no_grad()
def initialise(model: MMaDAForMaskedDiffusion, generator: torch.Generator) -> None:
    """Embeddings large against the blocks' outputs, which shrink with depth; a small head starts near uniform."""
    depth = math.sqrt(2 * model.config.n_layers)
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue
        std = 1.0 / math.sqrt(weight.shape[1])
        if weight is model.get_input_embeddings().weight:
            std = 0.7
        elif weight is model.get_output_embeddings().weight:
            std = 0.02
        elif name.endswith(("attn_out.weight", "ff_out.weight")):
            std /= depth
        weight.normal_(0.0, std, generator=generator)


def encode_answers(policy: MMaDAPolicy, rows: list[dict[str, Any]], answers: list[str], length: int) -> Canvas:
    """Filled canvases: the holes hold the answer, an end of turn and an eos tail, ``length`` tokens together."""
    canvas = policy.encode(rows, max_completion_length=length)
    tokenizer = policy.processor.tokenizer
    tokens = tokenizer([f"{answer}<|eot_id|>" for answer in answers], add_special_tokens=False)["input_ids"]
    padded = torch.tensor([own + [policy.pad_token_id] * (length - len(own)) for own in tokens])
    return replace(canvas, ids=canvas.ids.masked_scatter(canvas.fill_mask, padded))


def masked_loss(model, policy: MMaDAPolicy, canvas: Canvas, *, generator: torch.Generator) -> Tensor:
    """LLaDA's masked cross-entropy with weight 1/t, in nats per answer token.

    The ratios t of a batch are evenly spaced from a random start, each uniform by itself, and at least 0.05.
    """
    ids, fill = canvas.ids, canvas.fill_mask
    spaced = torch.arange(len(ids)) / len(ids) + torch.rand((), generator=generator)
    ratio = spaced.remainder(1.0).clamp(min=0.05)[:, None]
    hidden = fill & (torch.rand(ids.shape, generator=generator) < ratio)
    logps = model(
        **policy.inputs(canvas, hidden), select=hidden, targets=ids[hidden], token_space=canvas.token_space
    ).logps
    return -(logps / ratio.expand_as(hidden)[hidden]).sum() / fill.sum()


def train(
    policy: MMaDAPolicy,
    model,
    draw: Callable[[int], Canvas],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    decay: int,
    generator: torch.Generator,
) -> None:
    """One stage, in place: a short warm-up, flat, then linear to zero over the last ``decay`` steps.

    ``draw(n)`` gives n rows to learn, filled as ``encode_answers`` does.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    warm_up = steps // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (warm_up + 1), 1.0, max((steps - step) / decay, 0.0))
    )
    model.train()
    for _ in tracked(range(steps), "cold start"):
        masked_loss(model, policy, draw(batch_size), generator=generator).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def untaught(generator: torch.Generator, words: tuple[str, ...] = (), **fields: Any) -> LoadedPolicy:
    """A policy before its cold start; ``words`` as in ``build_tokenizer``, ``fields`` as in ``build_model``."""
    tokenizer = build_tokenizer(words)
    model = build_model(tokenizer, generator=generator, **fields)
    return LoadedPolicy(model=model, policy=MMaDAPolicy(model.config, MMaDAProcessor(tokenizer)))


def arguments(name: str, description: str, words: list[str] | None = None) -> argparse.Namespace:
    """The command line of a cold start, whose checkpoint ships as ``builtin:NAME``; ``words`` default to ``sys.argv``'s."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=SHIPPED / name)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


def report(figures: dict[str, float]) -> None:
    """Prints shares."""
    for name, value in figures.items():
        say(f"{name:20} {100 * value:5.1f} %")


def save(loaded: LoadedPolicy, output: Path, *, half: bool = False) -> None:
    """Writes the checkpoint; ``half`` halves its bytes. It loads in float32, because float16 weights do not train."""
    model = loaded.model.half() if half else loaded.model
    model.save_pretrained(output)
    model.config.dtype = torch.float32
    model.config.save_pretrained(output)
    loaded.policy.processor.save_pretrained(output)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    say(f"{'checkpoint':20} {size / 1e6:5.2f} MB in {output}")


def main() -> None:
    """Command line: trains the arithmetic policy on right answers and saves it."""
    args = arguments("arithmetic_trained", __doc__)
    generator = torch.Generator().manual_seed(args.seed)
    loaded = untaught(generator)
    rows = problems("train", 8_000)
    canvas = encode_answers(loaded.policy, rows, [trace(row) for row in rows], SAMPLING["max_completion_length"])

    def draw(count: int) -> Canvas:
        return canvas.take(torch.randint(len(rows), (count,), generator=generator))

    train(loaded.policy, loaded.model, draw, **LEARN, generator=generator)
    save(loaded, args.output, half=True)


if __name__ == "__main__":
    main()
