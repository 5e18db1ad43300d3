"""The two ends of making ``builtin:riddles``, around ``unigrpo sft quickstart_think_draw_sft``.

``python -m unigrpo.toy.making.riddles_start FOLDER`` writes a configuration and a tokenizer, from which that recipe draws its
weights; ``... FOLDER --trained RUN`` writes there what the recipe has left in its folder, in half precision.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ...data.image_codes import load_tokenizer
from ...models import MMaDAPolicy, MMaDAProcessor
from ...models.builtin import model_path
from ...rollout.generate import LoadedPolicy, load_policy
from ..riddles import WORDS as RIDDLE_WORDS
from ..shapes import SIDE, WORDS
from .cold_start import CHECKPOINTS, build_model, save
from .shapes_cold_start import SIZES
from .tokenizer import build_tokenizer


IMAGE_TOKENIZER = "builtin:shapes_tokenizer"

SAMPLING = {"max_completion_length": 12, "steps": 12, "block_length": 4, "image_size": SIDE}
"""A thought has ten tokens with its tags and its stop."""


def untaught(seed: int = 0) -> LoadedPolicy:
    """A policy of 1.2 M parameters with a token for each word of riddles and captions."""
    tokenizer, pictures = build_tokenizer((*WORDS, *RIDDLE_WORDS)), load_tokenizer(model_path(IMAGE_TOKENIZER))
    model = build_model(
        tokenizer,
        generator=torch.Generator().manual_seed(seed),
        **SIZES,
        codebook_size=pictures.config.codebook_size,
        num_vq_tokens=(SIDE // pictures.factor) ** 2,
        image_tokenizer=IMAGE_TOKENIZER,
        sampling_defaults=SAMPLING,
    )
    return LoadedPolicy(model=model, policy=MMaDAPolicy(model.config, MMaDAProcessor(tokenizer)))


def main() -> None:
    """Command line: the folder of a checkpoint without weights, or with those of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, nargs="?", default=CHECKPOINTS / "riddles")
    parser.add_argument("--trained", help="the folder of the run whose weights are kept")
    args = parser.parse_args()
    described = untaught()
    if args.trained:
        described.model = load_policy(args.trained, dtype="float32").model
        save(described, args.output, half=True)
        return
    described.model.config.save_pretrained(args.output)
    described.policy.processor.save_pretrained(args.output)


if __name__ == "__main__":
    main()
