"""The model that is measured, and the canvases that are put before it, on whatever device it is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from unigrpo.models import MMaDAConfig, MMaDAForMaskedDiffusion, MMaDAPolicy, MMaDAProcessor
from unigrpo.types import Canvas, TokenSpace, keyed_generator

from ..support.tiny import golden_tokenizer, tiny_model, tiny_processor
from .plain import PlainModel


MODELS: dict[str, dict[str, int]] = {
    "8b": {},
    "mid": {"d_model": 256, "n_layers": 6, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 768},
}
"""Fields of ``MMaDAConfig`` beside its defaults, which are MMaDA-8B's. ``mid`` has its vocabulary of 134,656 tokens over a
small trunk, so that a CPU shows what the vocabulary costs. ``tiny`` is the goldens' model.
"""

WORDS = 100
"""Prompts are made of ids below this one, which are ordinary words in every vocabulary used here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured; lengths in tokens.

    Text: ``batch`` rows of ``prompt`` given and ``answer`` written positions in ``steps`` steps. Images: one of
    ``image_tokens`` behind ``text_slots``; ``trimmed_*`` are those of the padding case. Update: ``update_rows`` rows of
    ``update_length``, a quarter of it prompt, a third of it hidden. ``stop_block`` and ``stop_steps``: length and steps
    of each of the four blocks of the finished-rows case. ``dual_cache_floor``: of the ratio, None where one block leaves
    a cache little to reuse. ``bucket_rows`` rows are in each micro-batch of the case of mixed lengths, ``bucket_lengths``.
    Fine-tuning: ``sft_rows`` of each kind with ``sft_length`` places, prompts of ``sft_prompt``, pictures of ``sft_codes``.
    """

    rounds: int = 3
    batch: int = 4
    prompt: int = 64
    answer: int = 128
    steps: int = 64
    block_length: int = 32
    image_tokens: int = 256
    image_steps: int = 8
    text_slots: int = 64
    trimmed_slots: int = 512
    trimmed_caption: int = 23
    trimmed_image: int = 1024
    update_rows: int = 8
    update_length: int = 256
    stop_block: int = 32
    stop_steps: int = 16
    empty_tokens: int = 32
    law_draws: int = 4096
    growth_batches: tuple[int, ...] = (1, 2, 4, 8)
    growth_hidden: tuple[int, ...] = (24, 48, 96, 192)
    dual_cache_floor: float | None = 6.0
    bucket_rows: int = 8
    bucket_lengths: tuple[int, ...] = tuple(range(64, 513, 64))
    sft_rows: dict[str, int] = field(default_factory=lambda: {"text": 8, "pictures": 4})
    sft_length: dict[str, int] = field(default_factory=lambda: {"text": 256, "pictures": 131})
    sft_prompt: int = 64
    sft_codes: int = 256


FULL = Sizes()
QUICK = Sizes(
    rounds=2,
    prompt=160,
    answer=32,
    steps=4,
    image_steps=4,
    update_rows=4,
    stop_block=8,
    stop_steps=2,
    empty_tokens=8,
    law_draws=2048,
    dual_cache_floor=None,
    bucket_rows=4,
)
"""One block of the full text workload, its earlier blocks already written."""

TINY = Sizes(
    rounds=1,
    batch=3,
    prompt=7,
    answer=16,
    steps=8,
    block_length=8,
    image_tokens=16,
    image_steps=4,
    text_slots=12,
    trimmed_slots=32,
    trimmed_caption=5,
    trimmed_image=16,
    update_rows=4,
    update_length=48,
    stop_block=4,
    stop_steps=2,
    empty_tokens=4,
    growth_batches=(1, 2, 4),
    growth_hidden=(4, 8, 16),
    dual_cache_floor=None,
    bucket_rows=4,
    bucket_lengths=(32, 64, 96, 128),
    sft_rows={"text": 4, "pictures": 4},
    sft_length={"text": 48, "pictures": 40},
    sft_prompt=8,
    sft_codes=16,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A model, its name, its description and the sizes to measure it at."""

    size: str
    model: MMaDAForMaskedDiffusion
    policy: MMaDAPolicy
    sizes: Sizes

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def plain(self) -> PlainModel:
        """The same weights behind the plain forward."""
        return PlainModel(self.model)


def random_bench(size: str, sizes: Sizes, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Bench:
    """A model with random weights, made on ``device``, so that nothing is loaded; ``tiny`` is the goldens'."""
    if size == "tiny":
        return replace(tiny_bench(sizes), model=tiny_model(dtype).to(device))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(0)
            model = MMaDAForMaskedDiffusion(MMaDAConfig(**MODELS[size])).eval()
    finally:
        torch.set_default_dtype(before)
    policy = MMaDAPolicy(model.config, MMaDAProcessor(golden_tokenizer("real")))
    return Bench(size=size, model=model, policy=policy, sizes=sizes)


def tiny_bench(sizes: Sizes = TINY) -> Bench:
    """The goldens' model, for tests of this harness."""
    model = tiny_model()
    return Bench(size="tiny", model=model, policy=MMaDAPolicy(model.config, tiny_processor()), sizes=sizes)


def words(*shape: int, seed: int) -> Tensor:
    """Random ordinary word ids of ``shape``, int64."""
    return torch.randint(WORDS, shape, generator=keyed_generator("benchmark", "words", seed))


def streams(count: int, seed: int = 0) -> list[torch.Generator]:
    """One generator a row."""
    return [keyed_generator("benchmark", seed, row) for row in range(count)]


def plain_stream(bench: Bench) -> torch.Generator:
    """The plain side's only generator, on the model's device; on a CPU it is the first of ``streams``."""
    return torch.Generator(bench.device).manual_seed(streams(1)[0].initial_seed())


def text_canvas(bench: Bench, batch: int, prompt: int, answer: int, whole_vocabulary: bool = True) -> Canvas:
    """``batch`` rows of random words before ``answer`` masks.

    The public code may write every id; over the whole vocabulary the library's tokens are therefore comparable with it.
    """
    config = bench.model.config
    space = bench.policy.token_space("text")
    if whole_vocabulary:
        space = TokenSpace(start=0, stop=config.vocab_size)
    ids = torch.cat([words(batch, prompt, seed=1), torch.full((batch, answer), config.mask_token_id)], dim=1)
    return Canvas(
        ids=ids,
        fill_mask=(torch.arange(prompt + answer) >= prompt).expand_as(ids).clone(),
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        task="text",
        token_space=space,
    ).to(bench.device)


def image_canvas(bench: Bench, caption: int, slots: int, image_tokens: int, trim: bool, rows: int = 1) -> Canvas:
    """``rows`` images to draw from the same ``caption`` words; untrimmed, the text takes ``slots + 1`` positions."""
    text = " ".join(f"w{word}" for word in words(caption, seed=2).tolist())
    return bench.policy.encode(
        [{"prompt": text}] * rows, "t2i", image_tokens=image_tokens, max_prompt_length=slots, trim_padding=trim
    ).to(bench.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateBatch:
    """Written rows to learn from.

    Attributes:
        canvas: B rows of L tokens, the answers written.
        hidden: ``[B, L]`` bool, corrupted and scored.
        advantages: ``[B]``.
        old_shift: ``[B, L]``, added to the old log-probabilities so that ratios leave 1 and clipping acts.
    """

    canvas: Canvas
    hidden: Tensor
    advantages: Tensor
    old_shift: Tensor


def update_batch(bench: Bench, rows: int, length: int, hidden: int | None = None) -> UpdateBatch:
    """Rows of which a quarter is prompt; ``hidden`` answer positions a row are scored, by default a third of the row."""
    generator = keyed_generator("benchmark", "update")
    prompt, count = length // 4, length // 3 if hidden is None else hidden
    canvas, written = text_canvas(bench, rows, prompt, length - prompt), words(rows, length, seed=3)
    chance, advantages = torch.rand(rows, length, generator=generator), torch.randn(rows, generator=generator)
    old_shift = 0.3 * torch.randn(rows, length, generator=generator)
    chance = chance.to(bench.device).masked_fill(~canvas.fill_mask, 2.0)
    return UpdateBatch(
        canvas=replace(canvas, ids=torch.where(canvas.fill_mask, written.to(bench.device), canvas.ids)),
        hidden=chance.argsort(dim=1).argsort(dim=1) < count,
        advantages=advantages.to(bench.device),
        old_shift=old_shift.to(bench.device),
    )
