"""What the recipes beside this file start from, and how what they leave is shipped.

``python -m unigrpo.toy.making.policies new NAME`` writes the configuration and the tokenizer of ``builtin:NAME``, around which
``unigrpo sft`` draws weights. ``... measure NAME FOLDER`` measures the weights that a run left in FOLDER. ``... ship NAME FOLDER``
also puts them where they ship.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...models import MMaDAProcessor
from ...rollout.generate import LoadedPolicy, load_policy
from ...terminal import say
from .. import countdown, emoji, emoji_riddles, riddles, running_sums, shapes, sudoku
from .figures import emoji_diversity, figures
from .tokenizer import SAMPLING, build_config, build_tokenizer


CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A shipped policy: ``words`` and ``phrases`` of its tokenizer, its ``sampling_defaults``, and what else is its own.

    Weights ship in half precision, but for those that are ``whole``.
    """

    words: tuple[str, ...]
    sampling: dict[str, int]
    phrases: tuple[str, ...] = ()
    whole: bool = False
    fields: dict[str, Any] = field(default_factory=dict)


DRAWS = {
    "n_layers": 5,
    "mlp_hidden_size": 344,
    "codebook_size": 512,
    "num_vq_tokens": 16,
    "image_tokenizer": "builtin:shapes_tokenizer",
}
"""What the configuration of a policy that draws has of its own."""

KINDS = {
    "arithmetic": Kind(words=(), sampling=SAMPLING, whole=True),
    "arithmetic_trained": Kind(words=(), sampling=SAMPLING),
    "countdown": Kind(words=countdown.WORDS, sampling=countdown.SAMPLING),
    "emoji": Kind(
        words=emoji.PHRASES,
        phrases=emoji_riddles.PHRASES,
        sampling={"max_completion_length": 8, "steps": 8, "block_length": 4, "image_size": emoji.SIDE},
        fields={
            **DRAWS,
            "codebook_size": 1024,
            "num_vq_tokens": 36,
            "image_tokenizer": "builtin:emoji_tokenizer",
        },
    ),
    "riddles": Kind(
        words=(*shapes.WORDS, *riddles.WORDS),
        sampling={"max_completion_length": 13, "steps": 13, "block_length": 4, "image_size": shapes.SIDE},
        fields=DRAWS,
    ),
    "running_sums": Kind(words=running_sums.WORDS, sampling=running_sums.SAMPLING),
    "shapes": Kind(
        words=shapes.WORDS,
        sampling={"max_completion_length": 16, "steps": 16, "block_length": 4, "image_size": shapes.SIDE},
        fields=DRAWS,
    ),
    "sudoku": Kind(words=sudoku.WORDS, sampling=sudoku.SAMPLING),
}
"""0.7 M parameters each; those that draw 1.2 M, and emoji 1.3 M."""


def new(name: str, output: Path) -> None:
    """Writes the configuration and the tokenizer of policy ``name`` into ``output``; weights there stay as they are."""
    kind = KINDS[name]
    tokenizer = build_tokenizer(kind.words, kind.phrases)
    build_config(tokenizer, sampling_defaults=kind.sampling, **kind.fields).save_pretrained(output)
    MMaDAProcessor(tokenizer).save_pretrained(output)


def measure(name: str, folder: str, rows: int | None = None) -> LoadedPolicy:
    """Prints the ``figures`` of the weights in ``folder``, for emoji how much pictures of one caption differ too, and returns the policy."""
    loaded = load_policy(folder, dtype="float32", device="cpu")
    for label, share in figures(name, loaded, rows).items():
        say(f"{label:48} {100 * share:5.1f} %")
    for label, value in emoji_diversity(loaded).items() if name == "emoji" and rows is None else ():
        say(f"two pictures of one caption, {label:20} {value:6.4f}")
    return loaded


def ship(name: str, folder: str, output: Path, rows: int | None = None) -> None:
    """Measures the weights in ``folder`` as ``figures`` does, then writes them to ``output``, halved as its kind says.

    They load in float32 from there, because float16 weights do not train.
    """
    loaded = measure(name, folder, rows)
    (loaded.model if KINDS[name].whole else loaded.model.half()).save_pretrained(output)
    loaded.model.config.dtype = torch.float32
    loaded.model.config.save_pretrained(output)
    loaded.policy.processor.save_pretrained(output)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    say(f"{size / 1e6:5.2f} MB in {output}")


def main(words: list[str] | None = None) -> None:
    """The command line; ``words`` default to ``sys.argv``'s."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("new", "measure", "ship"):
        own = commands.add_parser(command)
        own.add_argument("name", choices=sorted(KINDS))
        if command != "new":
            own.add_argument("folder", help="what a run left: its output_dir; or builtin:NAME")
            own.add_argument("--rows", type=int, help="held-out rows to measure with; default: as many as the README")
        if command != "measure":
            own.add_argument("--output", type=Path, help="default: the folder of builtin:NAME")
    args = parser.parse_args(words)
    if args.command == "measure":
        measure(args.name, args.folder, args.rows)
    elif args.command == "new":
        new(args.name, args.output or CHECKPOINTS / args.name)
    else:
        ship(args.name, args.folder, args.output or CHECKPOINTS / args.name, args.rows)


if __name__ == "__main__":
    main()
