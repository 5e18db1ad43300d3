"""Makes the shipped arithmetic policy: ``python -m unigrpo.toy.cold_start``.

The policy sees correct traces only. It first learns them well; then a few small batches at a high learning rate leave its
weights noisy around what they know. That makes a start for reinforcement learning with the form in place, an accuracy well
below what the model can reach, and answers that differ enough within a group to be compared.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ..accuracy import integer_match
from ..generation import LoadedPolicy
from ..models import MMaDAConfig, MMaDAForMaskedDiffusion, MMaDAPolicy, MMaDAProcessor
from .arithmetic import problems, trace
from .tokenizer import build_tokenizer, special_token_ids


CHECKPOINT = Path(__file__).parent / "checkpoints" / "arithmetic"

SAMPLING = {"max_completion_length": 16, "steps": 16, "block_length": 4}
"""Blocks shorter than an answer: the reasoning is written before the result that depends on it."""

CODEBOOK_SIZE = 16

LEARN = {"steps": 1100, "batch_size": 64, "learning_rate": 2e-3, "decay": 250}
UNSETTLE = {"steps": 50, "batch_size": 8, "learning_rate": 1.5e-3, "decay": 1}
"""The two stages: steps, rows a step, peak learning rate, and the last steps over which it falls to zero."""

FORMAT = re.compile(r"<think>[^<]+</think>[0-9]+")


def build_model(tokenizer: Any, *, generator: torch.Generator, **fields: Any) -> MMaDAForMaskedDiffusion:
    """A MMaDA of 0.7 M parameters around ``tokenizer``; the weights depend on ``generator`` alone.

    ``fields`` replace those of the config. The rotary base is 100, because at 500,000 most of a head's dimensions do not
    turn within 40 positions.
    """
    length = len(tokenizer)
    codes = fields.get("codebook_size", CODEBOOK_SIZE)
    values = {
        "d_model": 128,
        "n_layers": 3,
        "n_heads": 4,
        "n_kv_heads": 4,
        "mlp_hidden_size": 384,
        "rope_theta": 100.0,
        "max_sequence_length": 128,
        "vocab_size": length + codes,
        "llm_vocab_size": length,
        "image_token_offset": length,
        "codebook_size": codes,
        "num_vq_tokens": codes,
        "image_tokenizer": None,
        "sampling_defaults": SAMPLING,
        "special_token_ids": special_token_ids(tokenizer),
        "mask_token_id": tokenizer.mask_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        model = MMaDAForMaskedDiffusion(MMaDAConfig(**{**values, **fields}))
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


def encode_traces(policy: MMaDAPolicy, rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Ids ``[n, L]`` int64 of prompt, trace, end of turn and an eos tail, and the ``[n, L]`` bool mask of the answer."""
    canvas = policy.encode(rows, max_completion_length=SAMPLING["max_completion_length"])
    tokenizer = policy.processor.tokenizer
    answers = tokenizer([f"{trace(row)}<|eot_id|>" for row in rows], add_special_tokens=False)["input_ids"]
    length = SAMPLING["max_completion_length"]
    padded = torch.tensor([answer + [policy.pad_token_id] * (length - len(answer)) for answer in answers])
    return canvas.ids.masked_scatter(canvas.fill_mask, padded), canvas.fill_mask


def masked_loss(model, policy: MMaDAPolicy, ids: Tensor, fill: Tensor, *, generator: torch.Generator) -> Tensor:
    """LLaDA's masked cross-entropy with weight 1/t, in nats per answer token.

    The ratios t of a batch are evenly spaced from a random start, each uniform by itself, and at least 0.05.
    """
    spaced = torch.arange(len(ids)) / len(ids) + torch.rand((), generator=generator)
    ratio = spaced.remainder(1.0).clamp(min=0.05)[:, None]
    hidden = fill & (torch.rand(ids.shape, generator=generator) < ratio)
    logps = model(
        input_ids=ids.masked_fill(hidden, policy.mask_token_id),
        select=hidden,
        targets=ids[hidden],
        token_space=policy.token_space("text"),
    ).logps
    return -(logps / ratio.expand_as(hidden)[hidden]).sum() / fill.sum()


def train(
    policy: MMaDAPolicy,
    model,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    decay: int,
    generator: torch.Generator,
) -> None:
    """One stage on the train split, in place: a short warm-up, flat, then linear to zero over the last ``decay`` steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    warm_up = steps // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (warm_up + 1), 1.0, max((steps - step) / decay, 0.0))
    )
    ids, fill = encode_traces(policy, problems("train", 8_000))
    model.train()
    for _ in track(range(steps), description="cold start"):
        rows = torch.randint(len(ids), (batch_size,), generator=generator)
        masked_loss(model, policy, ids[rows], fill[rows], generator=generator).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def start_figures(loaded: LoadedPolicy, count: int = 512) -> dict[str, float]:
    """Held-out shares: greedy and T=1 accuracy, pass@8 at T=1, answers of the form ``<think>...</think>integer``."""
    rows = problems("test", count)
    greedy = _answers(loaded, rows, 0.0)
    draws = [_answers(loaded, rows[: count // 4], 1.0, seed) for seed in range(8)]
    hits = torch.tensor([[integer_match(a, r["solution"]) for a, r in zip(d, rows, strict=False)] for d in draws])
    correct = [integer_match(answer, row["solution"]) for answer, row in zip(greedy, rows, strict=True)]
    return {
        "greedy accuracy": sum(correct) / count,
        "greedy format": _share(greedy, FORMAT.fullmatch),
        "T=1 accuracy": hits.float().mean().item(),
        "T=1 pass@8": hits.any(dim=0).float().mean().item(),
        "T=1 format": _share([a for d in draws for a in d], FORMAT.fullmatch),
    }


def _answers(loaded: LoadedPolicy, rows: list[dict[str, Any]], temperature: float, seed: int = 0) -> list[str]:
    prompts = [row["prompt"] for row in rows]
    return loaded.generate(prompts, temperature=temperature, batch_size=128, seed=seed, **SAMPLING)


def _share(answers: list[str], test) -> float:
    return sum(bool(test(answer)) for answer in answers) / len(answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=CHECKPOINT)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, generator=generator)
    policy = MMaDAPolicy(model.config, MMaDAProcessor(tokenizer))
    console = Console()
    for stage in (LEARN, UNSETTLE):
        train(policy, model, **stage, generator=generator)
        for name, value in start_figures(LoadedPolicy(model=model.eval(), policy=policy)).items():
            console.print(f"{name:20} {100 * value:5.1f} %")
    model.save_pretrained(args.output)
    policy.processor.save_pretrained(args.output)
    size = sum(file.stat().st_size for file in args.output.rglob("*") if file.is_file())
    console.print(f"{'checkpoint':20} {size / 1e6:5.2f} MB in {args.output}")


if __name__ == "__main__":
    main()
