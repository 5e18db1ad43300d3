"""Riddles of the emoji world: what to draw is said by clues, so that it has to be thought out first.

*draw something you light at a party, left of the animal that says moo* is a candle left of a cow. A thought is the plain caption; the
picture is one of ``emoji``. All riddles are of two emoji, and held out are those of the pairs that the world holds out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, product
from typing import Any

import numpy as np
from PIL import Image

from . import emoji
from .emoji import EMOJI, NAMES, Scene, caption


CLUES = {name: tuple(clues) for name, (_, *clues) in EMOJI.items()}
"""Each name, and the two clues that stand for it."""

PROMPT = "draw {first}, {relation} {second}"

PHRASES = ("draw", ", left of", ", above", *(f" {clue}" for clue in chain(*CLUES.values())))
"""A token each of a policy's tokenizer: every riddle is four of them, so that a small policy soon finds its thought there."""

MISREAD = 0.6
"""How often the careless teacher takes a second clue for the next of ``NAMES``. First clues are never misread."""


@dataclass(frozen=True, slots=True)
class Riddle:
    """A scene of two emoji, and the places of their clues in ``CLUES``."""

    scene: Scene
    clues: tuple[int, int]

    @property
    def prompt(self) -> str:
        """The riddle in words."""
        first, second = (CLUES[name][clue] for name, clue in self.named)
        return PROMPT.format(first=first, relation=self.scene.relation, second=second)

    @property
    def named(self) -> tuple[tuple[str, int], ...]:
        """Both names, each with the place of its clue."""
        assert self.scene.second is not None
        return (self.scene.first, self.clues[0]), (self.scene.second, self.clues[1])


@cache
def riddles(split: str) -> tuple[Riddle, ...]:
    """The riddles of a split: four of each of its scenes of two emoji that differ.

    Raises:
        ValueError: ``split`` is not one of ``SPLITS``.
    """
    pairs = [scene for scene in emoji.scenes(split) if scene.second is not None]
    return tuple(Riddle(scene, clues) for scene in pairs for clues in product(range(2), repeat=2))


def thought(scene: Scene) -> str:
    """The thought that leads to a picture of ``scene``."""
    return f"<think>{caption(scene)}</think>"


def problems(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of task ``r2i``, a function of the arguments alone.

    Args:
        split: ``"train"`` or ``"test"``; two emoji of one, by whichever clues, never occur together in the other.
        n: number of rows; None = one for each riddle. Beyond that, riddles repeat in a new order.
        seed: decides the order.

    Returns:
        dictionaries with ``prompt``, ``task``, ``reward_prompt`` and ``solution`` (the plain caption, for rewards that know no riddles),
        ``thought`` (the right one), and ``relation``, ``first``, ``second``.

    Raises:
        ValueError: ``split`` is not one of ``SPLITS``.
    """
    return [_row(riddle) for riddle in _order(split, n, seed)]


def lessons(split: str, n: int | None = None, seed: int = 0, misread: float = 0.0) -> list[dict[str, Any]]:
    """``problems`` with the answers of a teacher: the thought (``completion``), and an ``image`` that follows it.

    ``misread`` is the chance that a second clue is taken for the next name, always the same, so that the mistake can be learned. The
    picture is right for the thought, not for the riddle. A riddle whose mistake would name a held-out pair is read right.
    """
    errs, rows = random.Random(f"emoji thoughts/{split}/{seed}"), []
    for riddle in _order(split, n, seed):
        said = _read(riddle, split, misread, errs)
        rows.append({**_row(riddle), "completion": thought(said), "image": picture(said)})
    return rows


def careless_lessons(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """``lessons`` of a teacher who misreads ``MISREAD`` of the second clues."""
    return lessons(split, n, seed, MISREAD)


def following(name: str) -> str:
    """What a second clue of ``name`` is taken for."""
    return NAMES[(NAMES.index(name) + 1) % len(NAMES)]


def picture(scene: Scene) -> Image.Image:
    """The one picture of ``scene`` that a teacher has: the fewer codes mean the same, the sooner a small policy draws them."""
    return emoji.render(scene, np.random.default_rng([*caption(scene).encode()]))


def _read(riddle: Riddle, split: str, misread: float, errs: random.Random) -> Scene:
    first, second = (following(name) if clue and errs.random() < misread else name for name, clue in riddle.named)
    said = replace(riddle.scene, first=first, second=second)
    allowed = first != second and emoji.split_of(said) in ("train", split)
    return said if allowed else riddle.scene


def _row(riddle: Riddle) -> dict[str, Any]:
    row = emoji.row(riddle.scene)
    return {**row, "prompt": riddle.prompt, "task": "r2i", "thought": thought(riddle.scene)}


def _order(split: str, n: int | None, seed: int) -> list[Riddle]:
    return emoji.order(riddles(split), n, random.Random(f"emoji riddles/{split}/{seed}"))
