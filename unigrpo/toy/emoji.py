"""A world of emoji: pictures of 48 x 48 pixels with one or two of them, and captions such as *a fox above a hamburger*.

A scene is one emoji alone, two of a kind, or two that differ and how they stand: 8,192 in all. About one in eight unordered
pairs and counts of two is held out: every word occurs in both splits, but what they are said of together in one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image


Item = TypeVar("Item")

SPLITS = ("train", "test")
SIDE, SLOT = 48, 24
"""Width and height of a picture, and of the place of one emoji, in pixels."""

GROUND = 0.96
"""Grey in [0, 1] behind the emoji, always the same: each further one would cost a small policy much of its learning."""

EMOJI = {
    "cat": ("\U0001f431", "the animal that says meow", "the animal that chases mice"),
    "dog": ("\U0001f436", "the animal that barks", "the animal that fetches sticks"),
    "fox": ("\U0001f98a", "the sly animal", "the animal with a bushy red tail"),
    "panda": ("\U0001f43c", "the animal that eats bamboo", "the black and white bear"),
    "frog": ("\U0001f438", "the animal that croaks", "what a tadpole becomes"),
    "pig": ("\U0001f437", "the animal that oinks", "the animal with a curly tail"),
    "cow": ("\U0001f42e", "the animal that says moo", "the animal that gives milk"),
    "lion": ("\U0001f981", "the king of the beasts", "the animal that leads a pride"),
    "tiger": ("\U0001f42f", "the big beast with stripes", "the beast that hunted Mowgli"),
    "rabbit": ("\U0001f430", "the animal with long ears", "the animal that brings eggs at Easter"),
    "monkey": ("\U0001f435", "the animal that swings in trees", "the animal that is most like us"),
    "chicken": ("\U0001f414", "the bird that clucks", "the bird of the farmyard"),
    "penguin": ("\U0001f427", "the bird that swims in the cold", "the bird in a tailcoat"),
    "owl": ("\U0001f989", "the bird that hoots at night", "the wise bird"),
    "octopus": ("\U0001f419", "the animal with eight arms", "the animal that squirts ink"),
    "tropical fish": ("\U0001f420", "the animal with fins", "what swims in an aquarium"),
    "ladybug": ("\U0001f41e", "the insect with dots", "the beetle that brings luck"),
    "unicorn": ("\U0001f984", "the animal with one horn", "the horse of fairy tales"),
    "apple": ("\U0001f34e", "the fruit that keeps the doctor away", "the fruit that fell on Newton"),
    "lemon": ("\U0001f34b", "the sour fruit", "the fruit squeezed into tea"),
    "banana": ("\U0001f34c", "the fruit that is bent", "the fruit whose peel you slip on"),
    "watermelon": ("\U0001f349", "the fruit with black seeds", "the fruit that is green outside and red inside"),
    "strawberry": ("\U0001f353", "the fruit that goes with cream", "the fruit with its seeds outside"),
    "pineapple": ("\U0001f34d", "the fruit with a crown of leaves", "the fruit of Hawaii"),
    "carrot": ("\U0001f955", "the nose of a snowman", "the orange root"),
    "corn cob": ("\U0001f33d", "what popcorn is made of", "the yellow ear from the field"),
    "hamburger": ("\U0001f354", "the meal in a bun", "the meal with a patty"),
    "pizza": ("\U0001f355", "the meal from Naples", "the meal from a flat box"),
    "doughnut": ("\U0001f369", "the pastry with a hole", "the ring with sprinkles"),
    "cookie": ("\U0001f36a", "what goes with milk", "the biscuit with chocolate chips"),
    "cake": ("\U0001f370", "what you eat at a birthday", "the sweet in layers"),
    "ice cream": ("\U0001f366", "what melts in a cone", "the cold sweet"),
    "avocado": ("\U0001f951", "what guacamole is made of", "the green fruit on toast"),
    "happy face": ("\U0001f600", "somebody who laughs", "somebody in a good mood"),
    "crying face": ("\U0001f622", "somebody who weeps", "somebody in tears"),
    "angry face": ("\U0001f621", "somebody who is furious", "somebody red with rage"),
    "cool face": ("\U0001f60e", "somebody with sunglasses", "somebody dressed for the beach"),
    "clown": ("\U0001f921", "somebody from the circus", "somebody with a red nose"),
    "alien": ("\U0001f47d", "somebody from another world", "somebody from a flying saucer"),
    "robot": ("\U0001f916", "somebody made of metal", "somebody who runs on batteries"),
    "pumpkin": ("\U0001f383", "something carved in October", "the lantern of Halloween"),
    "red heart": ("\u2764", "a sign of love", "a heart like a cherry"),
    "blue heart": ("\U0001f499", "a heart like the sea", "a heart like the sky"),
    "green heart": ("\U0001f49a", "a heart like grass", "a heart like a pea"),
    "yellow heart": ("\U0001f49b", "a heart like gold", "a heart like butter"),
    "purple heart": ("\U0001f49c", "a heart like a plum", "a heart like lavender"),
    "sun": ("\u2600", "what shines by day", "what the planets circle"),
    "moon": ("\U0001f319", "what changes from new to full", "what wolves howl at"),
    "star": ("\u2b50", "what you wish upon", "what tops a Christmas tree"),
    "rainbow": ("\U0001f308", "what follows the rain", "the arch of seven colors"),
    "flame": ("\U0001f525", "what firemen put out", "what comes out of a dragon"),
    "fir tree": ("\U0001f332", "what you decorate in December", "the tree with needles"),
    "cactus": ("\U0001f335", "the plant with spines", "the plant of the desert"),
    "sunflower": ("\U0001f33b", "the flower that turns to the light", "the flower that van Gogh painted"),
    "rose": ("\U0001f339", "the flower with thorns", "the flower for a valentine"),
    "mushroom": ("\U0001f344", "what grows under trees", "what a gnome lives in"),
    "globe": ("\U0001f30d", "the planet we live on", "what an atlas shows"),
    "car": ("\U0001f697", "what drives on roads", "what parks in a garage"),
    "rocket": ("\U0001f680", "what flies to space", "what starts with a countdown"),
    "sailboat": ("\u26f5", "what the wind drives", "what a skipper steers"),
    "train": ("\U0001f682", "what runs on rails", "what stops at stations"),
    "gift": ("\U0001f381", "something wrapped", "something under a Christmas tree"),
    "balloon": ("\U0001f388", "something filled with air", "something that a pin can burst"),
    "candle": ("\U0001f56f", "something you light at a party", "something with a wick"),
}
"""Name: the character, and two clues, each of which stands for the name in a riddle."""

NAMES = tuple(EMOJI)
PLURALS = {name: f"{name}s" for name in NAMES} | {
    **{"fox": "foxes", "octopus": "octopuses", "tropical fish": "tropical fishes", "strawberry": "strawberries"},
    **{"cactus": "cactuses"},
}

RELATIONS = {
    "alone": ((12, 12),),
    "two": ((0, 12), (24, 12)),
    "left of": ((0, 12), (24, 12)),
    "above": ((12, 0), (12, 24)),
}
"""Where the emoji of a scene stand: pixels right and down of each slot's corner. One direction each: nothing is *below*."""

SHARES = {"alone": 0.1, "two": 0.1, "left of": 0.4, "above": 0.4}
"""How often a relation is taught; by the number of its scenes, those of one name would be one in sixty."""

VARIANTS = ((-0.25, -0.25), (0.25, 0.25))
"""Pixels by which an emoji is moved right and down: so few that the codes of a picture are easy to learn."""

WORDS = ("a", "an", "two", "left", "of", "above", *dict.fromkeys(" ".join([*NAMES, *PLURALS.values()]).split()))
"""Every word of a caption, once each."""

PHRASES = ("a", "an", "two", "left of", "above", *NAMES, *PLURALS.values())
"""A token each of a policy's tokenizer: a short prompt leaves a small policy more sight of its picture."""

SPRITES = Path(__file__).parent / "sprites" / "emoji.png"
CELL, COLUMNS = 64, 8
"""The file of sprites is a grid of cells, in the order of ``NAMES``; a cell is a slot, its pixels 64 / 24 as fine."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows: a key of ``RELATIONS``, and names; ``second`` is None where there is one name alone."""

    relation: str
    first: str
    second: str | None = None


SCENES = (
    *(Scene(relation, name) for relation in ("alone", "two") for name in NAMES),
    *(Scene(relation, *pair) for relation in ("left of", "above") for pair in permutations(NAMES, 2)),
)


def split_of(scene: Scene) -> str:
    """The split that owns ``scene``: of a pair it is the same in any order and relation."""
    first = NAMES.index(scene.first)
    if scene.second is None:
        return "test" if scene.relation == "two" and first % 8 == 3 else "train"
    low, high = sorted((first, NAMES.index(scene.second)))
    return "test" if (7 * low + 13 * high) % 8 == 0 else "train"


@cache
def scenes(split: str) -> tuple[Scene, ...]:
    """The scenes of a split in the order of ``SCENES``.

    Raises:
        ValueError: ``split`` is not one of ``SPLITS``.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose one of {SPLITS}")
    return tuple(scene for scene in SCENES if split_of(scene) == split)


def some_scene(split: str, rng: np.random.Generator) -> Scene:
    """A random scene of a split, its relation by ``SHARES`` of those that the split has."""
    groups = _by_relation(split)
    shares = np.array([SHARES[relation] for relation in groups])
    members = groups[rng.choice(list(groups), p=shares / shares.sum())]
    return members[rng.integers(len(members))]


@cache
def _by_relation(split: str) -> dict[str, list[Scene]]:
    groups = {relation: [scene for scene in scenes(split) if scene.relation == relation] for relation in RELATIONS}
    return {relation: members for relation, members in groups.items() if members}


def caption(scene: Scene) -> str:
    """``scene`` in words: ``"a fox above a hamburger"``, ``"two red hearts"``, ``"an owl"``."""
    if scene.relation == "two":
        return f"two {PLURALS[scene.first]}"
    first = one(scene.first)
    return first if scene.second is None else f"{first} {scene.relation} {one(scene.second)}"


def one(name: str) -> str:
    """``name`` with its article."""
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """A 48 x 48 RGB picture of ``scene`` on ``GROUND``; ``rng`` picks one of ``VARIANTS`` for each emoji."""
    pixels = np.full((SIDE, SIDE, 3), GROUND, dtype=np.float32)
    for (left, top), name in zip(RELATIONS[scene.relation], (scene.first, scene.second or scene.first), strict=False):
        pixels[top : top + SLOT, left : left + SLOT] = drawn(name, VARIANTS[rng.integers(len(VARIANTS))])
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))


@cache
def drawn(name: str, shift: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.float32]:
    """``[24, 24, 3]`` in [0, 1]: one emoji on ``GROUND``, moved right and down by ``shift`` pixels, at most 1."""
    border, scale = 4, CELL / SLOT
    padded = Image.new("RGBA", (CELL + 2 * border,) * 2)
    padded.paste(_sprites()[NAMES.index(name)], (border, border))
    left, top = (border - move * scale for move in shift)
    small = padded.resize((SLOT, SLOT), Image.Resampling.LANCZOS, box=(left, top, left + CELL, top + CELL))
    values = np.asarray(small, dtype=np.float32) / 255
    cover = values[..., 3:]
    return cover * values[..., :3] + (1 - cover) * np.float32(GROUND)


@cache
def _sprites() -> list[Image.Image]:
    with Image.open(SPRITES) as sheet:
        whole = sheet.convert("RGBA")
    places = [divmod(index, COLUMNS) for index in range(len(NAMES))]
    return [whole.crop((x * CELL, y * CELL, (x + 1) * CELL, (y + 1) * CELL)) for y, x in places]


def problems(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Text-to-image rows of a split, a function of the arguments alone.

    Args:
        split: ``"train"`` or ``"test"``; a pair, or a count of two, of one never occurs in the other.
        n: number of rows; None = one for each scene. Beyond that, scenes repeat in a new order.
        seed: decides the order.

    Returns:
        dictionaries with ``prompt``, ``reward_prompt`` and ``solution`` (each the caption), ``task`` (``"t2i"``), and
        ``relation``, ``first``, ``second``.

    Raises:
        ValueError: ``split`` is not one of ``SPLITS``.
    """
    return [row(scene) for scene in order(scenes(split), n, random.Random(f"emoji/{split}/{seed}"))]


def row(scene: Scene) -> dict[str, Any]:
    """One row of ``problems``."""
    said = caption(scene)
    return {"prompt": said, "task": "t2i", "reward_prompt": said, "solution": said, **asdict(scene)}


def order(items: Sequence[Item], n: int | None, rng: random.Random) -> list[Item]:
    """``n`` of ``items``, each once before any comes again, in orders that ``rng`` decides; None = each once."""
    endless = _shuffled_forever(items, rng)
    return [item for _, item in zip(range(len(items) if n is None else n), endless, strict=False)]


def _shuffled_forever(items: Sequence[Item], rng: random.Random) -> Iterator[Item]:
    while True:
        yield from rng.sample(items, len(items))
