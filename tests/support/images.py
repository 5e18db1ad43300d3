"""Rows, options and tokenizers of runs with pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from unigrpo.models.magvit import MagvitV2, MagvitV2Config
from unigrpo.training.old_and_reference import add_old_and_reference

from .laws import losses_of
from .tiny import GOLDENS, prompts


def tiny_tokenizer() -> MagvitV2:
    """The goldens' 0.77 M-parameter tokenizer."""
    config = MagvitV2Config(
        channels=32,
        encoder_multipliers=(1, 1, 1, 1, 2),
        encoder_blocks=(1, 2, 1, 1, 1),
        decoder_multipliers=(1, 1, 1, 1, 2),
        decoder_blocks=(1, 1, 1, 2, 1),
        code_bits=6,
    )
    model = MagvitV2(config)
    weights = load_file(GOLDENS / "g5_magvit_tiny_weights_fp16.safetensors")
    model.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    )
    return model.eval()


GUIDED = {"guidance": "both", "guidance_scale": 1.5}


def picture(seed: int, width: int = 50, height: int = 40) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def image_rows(kind: str, count: int = 4, words: tuple[int, ...] = (2, 70, 5, 9)) -> list[dict]:
    """Rows of one task, of three in turn ("mixed"), or of these and r2i ("all"), with prompts of several lengths."""
    tasks = {"mixed": ("t2i", "mmu", "text", "t2i", "mmu"), "all": ("r2i", "t2i", "mmu", "text")}.get(kind, (kind,))
    rows = prompts(count, words)
    for i, row in enumerate(rows):
        row["task"] = tasks[i % len(tasks)]
        if row["task"] == "mmu":
            row["image"] = picture(i)
    return rows


def options(kind: str, count: int = 4, t2i: dict | None = None, **changes) -> dict:
    """Arguments of ``make_trainer`` for a run of ``kind``; images have 16 codes. ``t2i`` sets keys of pictures, in r2i too."""
    pictures = {"steps": 4, "guidance_scale": 1.5, **(t2i or {})}
    return {
        "rows": image_rows(kind, count),
        "image_size": 64,
        "image_tokenizer": tiny_tokenizer(),
        "shuffle_dataset": False,
        "task_overrides": {"t2i": pictures, **({"picture": dict(pictures)} if kind in ("r2i", "all") else {})},
        **changes,
    }


def assert_on_policy(trainer, window, exact: set[str] | None = None) -> None:
    """Old passes are really computed; ratios are exactly 1 and KLs exactly 0 in every unit of every update.

    ``exact``: the tasks whose KL is the exact one, where every scored token has a ratio of its own.
    """
    add_old_and_reference(trainer.pipeline(), window, always_old=True)
    rows = [] if exact is None else window.experiences
    assert all(bool(row.old_known.all()) and bool((row.old_logps[row.target] < 0).all()) for row in rows)
    seen = 0
    for k in range(trainer.args.num_iterations):
        for batch, loss, terms in losses_of(trainer, window, k):
            assert batch.old_logps is not None and loss.requires_grad
            assert bool((terms.ratio == 1.0).all()) and bool((terms.kl == 0.0).all())
            if exact is not None:
                assert (batch.ref_logps is None) == (batch.canvas.task in exact)
                assert len(terms.ratio) == int(batch.target.sum())
            seen += len(terms.ratio)
    assert seen > 0


ONE_PROMPT = {"num_iterations": 1, "gradient_accumulation_steps": 1, "steps_per_generation": 1, "logging_steps": 1}
"""With four answers a batch and four generations: one prompt a window."""
