"""Prompts to click: what the shipped policies were taught, and for others what anybody may ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import import_named


WORLDS = ("arithmetic", "emoji", "riddles", "shapes")

CAPTIONS = {
    "emoji": ["a fox above a hamburger", "an owl left of a rainbow", "two red hearts"],
    "": ["a large red circle at the left", "a small green cross at the top", "a yellow triangle"],
}

TEXTS = {
    "arithmetic": ["Tom has 127 cups and gets 4. Total?", "Ann had 476 keys and found 3. Total?"],
    "shapes": ["Tom has 127 cups and gets 4. Total?", "Ann had 476 keys and found 3. Total?"],
    "riddles": ["something small, the color of plums, the shape of a pyramid, where arrows aim"],
    "emoji": ["draw the wise bird, above what runs on rails"],
    "": ["What is 17 times 12? Think first.", "Name three uses of a brick."],
}

RIDDLES = {
    "riddles": [
        "something small, the color of sapphires, the shape of a stamp, where roots grow",
        "something large, the color of lemons, the shape of a pancake, where clouds drift",
    ],
    "emoji": [
        "draw something you light at a party, left of the animal that says moo",
        "draw what starts with a countdown, above what wolves howl at",
    ],
}

QUESTIONS = ["What color is it?", "What shape is it?", "Describe the picture."]


def examples(names: Sequence[str], task: str) -> list[list[Any]]:
    """Rows to click, each a prompt, and for ``mmu`` a picture too.

    ``names`` are of the checkpoint and of its image tokenizer: the second tells the world of a policy that a run has left.
    """
    world = next((own for name in names for own in WORLDS if f"builtin:{own}" in name), "")
    if task == "mmu":
        # By name: the toy worlds stand above the command line.
        pictures = import_named("unigrpo.toy.shapes:questions")("test", 3)
        return [[asked, row["image"].resize((128, 128), 0)] for asked, row in zip(QUESTIONS, pictures, strict=True)]
    captions = CAPTIONS.get(world, CAPTIONS[""])
    if task == "t2i":
        return [[caption] for caption in captions]
    if task == "r2i":
        return [[prompt] for prompt in RIDDLES.get(world, captions)]
    return [[prompt] for prompt in TEXTS[world]]
