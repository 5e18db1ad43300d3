"""Decoders of 0.7 M parameters without weights: ``python -m unigrpo.toy.making.decoder dream runs/dream``.

They have the quickstart's tokenizer and sizes. ``dream`` has Dream's classes, attention and shift. ``sdar`` has those of SDAR: blocks of four,
counted from the start of a row. ``unigrpo/models/README.md`` has the commands that
teach them to add.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...models.chat_templates import CHAT_TEMPLATE
from ...models.decoder import DecoderProcessor, DreamConfig, SDARConfig
from ...terminal import say
from .tokenizer import SAMPLING, build_tokenizer


SHAPES: dict[str, tuple[type, dict[str, Any]]] = {
    "dream": (DreamConfig, {}),
    "sdar": (
        SDARConfig,
        {
            "head_dim": 32,
            "block_size": SAMPLING["block_length"],
        },
    ),
}
"""Configuration class and its own fields of each."""


def shape(name: str, folder: Path) -> None:
    """Writes the configuration and the tokenizer into ``folder``; weights are drawn around them with ``from_scratch``.

    The rotary base is 100, as in the other small policies, because most of a head's dimensions would not turn within 40 positions.
    """
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    kind, fields = SHAPES[name]
    config = kind(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        rope_theta=100.0,
        initializer_range=0.088,
        mask_token_id=tokenizer.mask_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        sampling_defaults=SAMPLING,
        **fields,
    )
    config.save_pretrained(folder)
    DecoderProcessor(tokenizer).save_pretrained(folder)


def main(words: list[str] | None = None) -> None:
    """The command line; ``words`` default to ``sys.argv``'s."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args(words)
    shape(args.name, args.folder)
    say(f"wrote the shape of {args.name} to {args.folder}")


if __name__ == "__main__":
    main()
