"""Prompts to click: what the shipped policies were taught, and for others what anybody may ask."""

from __future__ import annotations

from typing import Any

from ...errors import import_named


CAPTIONS = ["a large red circle at the left", "a small green cross at the top", "a yellow triangle"]

TEXTS = {
    "arithmetic": ["Tom has 127 cups and gets 4. Total?", "Ann had 476 keys and found 3. Total?"],
    "shapes": ["Tom has 127 cups and gets 4. Total?", "Ann had 476 keys and found 3. Total?"],
    "riddles": ["something small, the color of plums, the shape of a pyramid, where arrows aim"],
    "": ["What is 17 times 12? Think first.", "Name three uses of a brick."],
}

RIDDLES = [
    "something small, the color of sapphires, the shape of a stamp, where roots grow",
    "something large, the color of lemons, the shape of a pancake, where clouds drift",
]

QUESTIONS = ["What color is it?", "What shape is it?", "Describe the picture."]


def examples(name: str, task: str) -> list[list[Any]]:
    """Rows to click, each a prompt, and for ``mmu`` a picture too."""
    world = next((world for world in ("arithmetic", "shapes", "riddles") if f"builtin:{world}" in name), "")
    if task == "mmu":
        # By name: the toy worlds stand above the command line.
        pictures = import_named("unigrpo.toy.shapes:questions")("test", 3)
        return [[asked, row["image"].resize((128, 128), 0)] for asked, row in zip(QUESTIONS, pictures, strict=True)]
    if task == "t2i":
        return [[caption] for caption in CAPTIONS]
    if task == "r2i":
        return [[prompt] for prompt in (RIDDLES if world == "riddles" else CAPTIONS)]
    return [[prompt] for prompt in TEXTS[world]]
