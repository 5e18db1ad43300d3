"""What the shipped CLIPs are trained on, and what they are measured by: pictures of each world with captions true and untrue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.pictures import to_pixels
from ...models.magvit import MagvitV2
from .. import emoji, shapes
from ..emoji import Scene
from ..shapes import FORMS, SPECS, Spec
from .fitting import draw_seed
from .image_tokenizer import HELD_OUT_SEED, PICTURES_PER_SPEC, emoji_pictures, gallery, reconstruct


Draw = Callable[[int], tuple[Tensor, list[str], Tensor]]
"""Gives pixels ``[n, 3, H, W]``, a caption of each, and ``[n, n]`` bool: which caption (column) is true of which picture."""

Similarity = Callable[[Tensor, list[str]], Tensor]
"""Of pixels and captions, ``[n_pixels, n_captions]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a CLIP is trained for: ``words`` of its captions, its pictures ``side`` pixels wide, and how it is measured."""

    words: tuple[str, ...]
    side: int
    training: dict[str, Any]
    source: Callable[[MagvitV2, torch.Generator], Draw]
    figures: Callable[[Similarity, MagvitV2], dict[str, float]]


def fits(said: Spec, form: str, shown: Spec) -> bool:
    """Is the caption of ``said`` in ``form`` true of a picture of ``shown``?"""
    return all(getattr(said, name) == getattr(shown, name) for name in Spec.__slots__ if f"{{{name}}}" in FORMS[form])


def shapes_source(magvit: MagvitV2, generator: torch.Generator, per_spec: int = PICTURES_PER_SPEC) -> Draw:
    """Pictures, half of them restored by ``magvit``, with captions of random forms.

    A short caption is true of several pictures, and all of those are its positives.
    """
    members, real = gallery(per_spec, draw_seed(generator))
    pictures = torch.stack([real, reconstruct(magvit, real)])

    def draw(count: int) -> tuple[Tensor, list[str], Tensor]:
        rows = torch.randint(len(members), (count,), generator=generator)
        forms = [list(FORMS)[i] for i in torch.randint(len(FORMS), (count,), generator=generator)]
        shown = [members[row] for row in rows]
        positive = [[fits(said, form, spec) for said, form in zip(shown, forms, strict=True)] for spec in shown]
        captions = [shapes.caption(spec, form) for spec, form in zip(shown, forms, strict=True)]
        return pictures[torch.arange(count) % 2, rows], captions, torch.tensor(positive)

    return draw


def shapes_figures(similarity: Similarity, magvit: MagvitV2) -> dict[str, float]:
    """Shares of real and of restored pictures whose own caption is the nearest of all."""
    _, pixels = gallery(4, HELD_OUT_SEED)
    shown = {"real pictures": pixels, "reconstructions": reconstruct(magvit, pixels)}
    return {f"own caption nearest, {name}": retrieval_accuracy(similarity, own) for name, own in shown.items()}


@torch.no_grad()
def retrieval_accuracy(similarity: Similarity, pixels: Tensor, batch_size: int = 240) -> float:
    """Share of ``gallery`` pictures, in its order, whose own full caption is the nearest of all 240."""
    texts = [shapes.caption(spec) for spec in SPECS]
    nearest = torch.cat([similarity(part, texts).argmax(1) for part in pixels.split(batch_size)])
    own = torch.arange(len(SPECS)).repeat_interleave(len(pixels) // len(SPECS))
    return (nearest == own).float().mean().item()


def edits(scene: Scene, rng: np.random.Generator, split: str) -> dict[str, Scene]:
    """Scenes of ``split`` that differ from ``scene`` in one thing: which way round, how they stand, how many, or which emoji."""
    found = {}
    if scene.second is None:
        found["count"] = replace(scene, relation="two" if scene.relation == "alone" else "alone")
    else:
        found["swap"] = replace(scene, first=scene.second, second=scene.first)
        found["layout"] = replace(scene, relation="above" if scene.relation == "left of" else "left of")
    found = {kind: own for kind, own in found.items() if emoji.split_of(own) == split}
    # Few scenes beside one of the test split are there too, so for these it may be of either.
    while True:
        place = "second" if scene.second is not None and rng.random() < 0.5 else "first"
        other = replace(scene, **{place: emoji.NAMES[rng.integers(len(emoji.NAMES))]})
        if other.first != other.second and other != scene and (split == "test" or emoji.split_of(other) == split):
            return {**found, "replaced": other}


def emoji_source(magvit: MagvitV2, generator: torch.Generator) -> Draw:
    """Scenes of the training split, each with its ``edits`` in the same batch; half of the pictures restored by ``magvit``."""
    rng = np.random.default_rng(draw_seed(generator))
    members = emoji.scenes("train")
    places = {scene: index for index, scene in enumerate(members)}
    real = to_pixels([emoji.render(scene, rng) for scene in members]).half()
    pictures = torch.stack([real, torch.cat([reconstruct(magvit, part.float()).half() for part in real.split(240)])])

    def draw(count: int) -> tuple[Tensor, list[str], Tensor]:
        own = np.random.default_rng(draw_seed(generator))
        scenes: list[Scene] = []
        while len(scenes) < count:
            scene = emoji.some_scene("train", own)
            scenes += [scene, *edits(scene, own, "train").values()]
        scenes = scenes[:count]
        rows = torch.tensor([places[scene] for scene in scenes])
        kinds = torch.tensor(own.integers(2, size=count))
        return pictures[kinds, rows].float(), [emoji.caption(scene) for scene in scenes], rows[:, None] == rows[None]

    return draw


@torch.no_grad()
def emoji_figures(similarity: Similarity, magvit: MagvitV2, count: int = 400) -> dict[str, float]:
    """Shares of restored pictures of held-out scenes that are nearer to their caption than to one with an edit, by its kind."""
    scenes, pixels = emoji_pictures("test", count, HELD_OUT_SEED)
    restored, rng = reconstruct(magvit, pixels), np.random.default_rng(HELD_OUT_SEED)
    own = torch.stack([similarity(restored[i : i + 1], [emoji.caption(scenes[i])])[0, 0] for i in range(count)])
    won: dict[str, list[bool]] = {}
    for index, scene in enumerate(scenes):
        others = edits(scene, rng, "test")
        values = similarity(restored[index : index + 1], [emoji.caption(other) for other in others.values()])[0]
        for kind, value in zip(others, values, strict=True):
            won.setdefault(f"own caption above that of an edit: {kind}", []).append(bool(own[index] > value))
    captions = [emoji.caption(scene) for scene in emoji.scenes("test")]
    nearest = torch.cat([similarity(part, captions).argmax(1) for part in restored.split(100)])
    right = [captions[index] == emoji.caption(scene) for index, scene in zip(nearest, scenes, strict=True)]
    shares = {f"own caption nearest of {len(captions)}": right, **won}
    return {label: sum(outcomes) / len(outcomes) for label, outcomes in shares.items()}


WORLDS = {
    "shapes": World(
        words=shapes.WORDS,
        side=shapes.SIDE,
        training={"steps": 1500, "batch_size": 128, "learning_rate": 2e-3},
        source=shapes_source,
        figures=shapes_figures,
    ),
    "emoji": World(
        words=emoji.WORDS,
        side=emoji.SIDE,
        training={"steps": 1200, "batch_size": 128, "learning_rate": 2e-3},
        source=emoji_source,
        figures=emoji_figures,
    ),
}
