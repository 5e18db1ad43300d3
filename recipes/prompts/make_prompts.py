"""Writes t2i_train.txt and t2i_heldout.txt beside this file, the same bytes every time; see README.md.

python recipes/prompts/make_prompts.py                        write both files
python recipes/prompts/make_prompts.py --against LIST.txt     which prompts does a benchmark have too?
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


FILES = ("t2i_train.txt", "t2i_heldout.txt")

TRAIN, HELD_OUT = 50, 10
"""Prompts of each kind."""

HELD_OUT_SHARE = 6
"""One word pair in so many is held out."""

ANIMALS = (
    *("fox", "owl", "hedgehog", "penguin", "rabbit", "squirrel", "turtle", "frog", "otter", "raccoon"),
    *("snail", "lizard", "peacock", "swan", "badger", "lobster", "octopus", "goat"),
)
THINGS = (
    *("lantern", "teapot", "accordion", "cactus", "candle", "drum", "kettle", "pumpkin", "seashell", "globe"),
    *("trumpet", "violin", "basket", "anchor", "hourglass", "crown", "feather", "bell", "pinwheel"),
    *("compass", "mitten", "acorn", "telescope", "mushroom"),
)
COLOURS = ("red", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "turquoise", "grey")
NUMBERS = ("two", "three", "four", "five", "six")
PLURALS = {"fox": "foxes", "octopus": "octopuses", "compass": "compasses", "hourglass": "hourglasses"}
PLURALS |= {"cactus": "cacti"}

PLACES = (
    *("on a mossy stone", "on a sunny windowsill", "beside a frozen pond", "on a pile of autumn leaves"),
    *("in an empty white room", "on the steps of an old library", "in a field of tall grass", "on a rainy pavement"),
    *("under a paper parasol", "on a beach at low tide"),
)
LAYOUTS = (
    *("in a row on a plain background", "scattered over a wooden floor", "on a grey blanket", "in a neat circle"),
    *("on a white shelf", "side by side in the snow"),
)
FINISHES = (
    *("on a white background", "on a marble floor", "seen from above", "in soft morning light"),
    "in a glass case",
)
HOLDERS = ("barrel", "wheelbarrow", "treasure chest", "tree stump", "bathtub", "piano", "bookcase", "wooden crate")
RELATIONS = (
    *("to the left of", "to the right of", "on top of", "underneath", "behind", "in front of", "leaning against"),
    "inside",
)
SCENES = (
    *("a fishing harbour", "a mountain village", "a narrow street of brick houses", "a bamboo forest"),
    *("a desert canyon", "a vegetable market", "an abandoned greenhouse", "a lighthouse on a cliff"),
    *("a terraced rice field", "a small railway station", "a river delta from the air", "a rooftop garden"),
    *("an ice cave", "a village bakery"),
)
LIGHTS = (
    *("at sunrise", "in thick fog", "on a moonlit night", "after heavy rain", "in the first snow", "at golden hour"),
    *("under northern lights", "in a thunderstorm"),
)
STYLES = (
    *("a watercolour of {}", "a linocut print of {}", "a charcoal sketch of {}", "{}, flat vector illustration"),
    *("{} as a stained-glass window", "{} folded from paper", "{} in pixel art", "an old botanical plate showing {}"),
    *("{} as a mosaic of small tiles", "{} knitted from wool", "{}, risograph poster in two inks"),
)
MATERIALS = (
    *("glass", "copper", "clay", "ice", "cardboard", "carved wood", "polished jade", "rusty iron", "felt"),
    "wicker",
)
WORDS = (
    *("OPEN", "HELLO", "FRESH", "NORTH", "MUSIC", "QUIET", "STAR", "TEA", "EXIT", "SOLD", "JAZZ", "HONEY", "LIBRARY"),
    *("PIER 7", "MIND THE STEP", "GOOD LUCK", "ROOM 42", "SEASON TWO"),
)
SURFACES = (
    *("a wooden sign that says {}", "a neon tube that spells {}", "a chalkboard with the word {} on it"),
    *("a paper flag printed with {}", "a shop window with {} painted on the glass", "a postcard that reads {}"),
    *("a brass plate engraved with {}", "a knitted scarf with the letters {}"),
)
DEEDS = (
    *("playing a tiny flute", "reading a map", "pushing a snowball", "wearing a yellow raincoat", "painting a fence"),
    *("sleeping in a hammock", "rowing across a puddle", "holding a paper lantern", "juggling three plums"),
)
PEOPLE = (
    *("an old fisherman", "a young baker", "a street violinist", "an astronaut", "a gardener", "a chess player"),
    *("a blacksmith", "a ballet dancer", "a mountain guide", "a puppet maker", "a beekeeper", "a clockmaker"),
)
MOMENTS = (
    *("laughing with closed eyes", "looking out of a round window", "walking through falling petals"),
    *("resting on a stone wall", "seen from behind on a long staircase", "lit by a single candle"),
    *("waving from a bridge", "under a huge oak tree", "crossing a dry lake", "at work in a crowded attic"),
)


class Prompt(NamedTuple):
    """A prompt and the word pairs it is made of; it is held out where one of its pairs is."""

    text: str
    pairs: tuple[str, ...]


def digest(text: str) -> int:
    """A number that depends on the text alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_held_out(words: str) -> bool:
    """Whether a pair of words is kept from training."""
    return digest(f"held out {words}") % HELD_OUT_SHARE == 0


def pick(choices: tuple[str, ...], key: str) -> str:
    """One of ``choices``, by the digest of ``key``."""
    return choices[digest(key) % len(choices)]


def pair(*words: str) -> str:
    return " + ".join(words)


def one(noun: str) -> str:
    """The noun with ``a`` or ``an``."""
    return f"{'an' if noun[0] in 'aeiou' or noun == 'hourglass' else 'a'} {noun}"


def many(noun: str) -> str:
    return PLURALS.get(noun, f"{noun}s")


def objects() -> Iterator[Prompt]:
    for noun, place in itertools.product(ANIMALS + THINGS, PLACES):
        form = pick(("{} {}", "{} {}, shallow depth of field", "close-up of {} {}"), noun + place)
        yield Prompt(form.format(one(noun), place), (pair(noun, place),))


def counts() -> Iterator[Prompt]:
    for number, noun in itertools.product(NUMBERS, ANIMALS + THINGS):
        layout = pick(LAYOUTS, number + noun)
        form = pick(("{} {} {}", "exactly {} {} {}"), noun + number)
        yield Prompt(form.format(number, many(noun), layout), (pair(number, noun),))


def colours() -> Iterator[Prompt]:
    for colour, noun in itertools.product(COLOURS, THINGS):
        form = pick(("one {c} {n} {f}", "{cn} {f}", "{an}, painted {c}, {f}"), colour + noun)
        words = {"c": colour, "n": noun, "cn": one(f"{colour} {noun}"), "an": one(noun)}
        yield Prompt(form.format(**words, f=pick(FINISHES, noun + colour)), (pair(colour, noun),))


def bindings() -> Iterator[Prompt]:
    for (c1, n1), (c2, n2) in itertools.combinations(itertools.product(COLOURS, THINGS), 2):
        if c1 == c2 or n1 == n2:
            continue
        form = pick(("{} beside {}", "{} together with {}", "{} facing {} on a plain floor"), c1 + n1 + c2 + n2)
        yield Prompt(form.format(one(f"{c1} {n1}"), one(f"{c2} {n2}")), (pair(c1, n1), pair(c2, n2)))


def relations() -> Iterator[Prompt]:
    for noun, relation, holder in itertools.product(ANIMALS + THINGS, RELATIONS, HOLDERS):
        yield Prompt(f"{one(noun)} {relation} {one(holder)}", (pair(noun, holder),))


def scenes() -> Iterator[Prompt]:
    for scene, light in itertools.product(SCENES, LIGHTS):
        form = pick(("{} {}", "{} {}, wide view", "wide shot: {} {}"), scene + light)
        yield Prompt(form.format(scene, light), (pair(scene, light),))


def styles() -> Iterator[Prompt]:
    for style, noun in itertools.product(STYLES, ANIMALS + THINGS):
        yield Prompt(style.format(one(noun)), (pair(style, noun),))


def materials() -> Iterator[Prompt]:
    for material, noun in itertools.product(MATERIALS, ANIMALS + THINGS):
        form = pick(("{} made of {}, {}", "{} sculpted in {}, {}"), material + noun)
        yield Prompt(form.format(one(noun), material, pick(FINISHES, noun + material)), (pair(material, noun),))


def lettering() -> Iterator[Prompt]:
    for surface, word in itertools.product(SURFACES, WORDS):
        yield Prompt(surface.format(f'"{word}"'), (pair(surface, word),))


def deeds() -> Iterator[Prompt]:
    for animal, deed in itertools.product(ANIMALS, DEEDS):
        form = pick(("{} {}", "{} {}, storybook illustration", "{} {}, natural light"), animal + deed)
        yield Prompt(form.format(one(animal), deed), (pair(animal, deed),))


def people() -> Iterator[Prompt]:
    for who, moment in itertools.product(PEOPLE, MOMENTS):
        form = pick(("portrait of {} {}", "{} {}", "{} {}, black-and-white film"), who + moment)
        yield Prompt(form.format(who, moment), (pair(who, moment),))


def stories() -> Iterator[Prompt]:
    """Longer ones: a scene in some light with an animal at something and a coloured thing near it."""
    for scene, light, (animal, deed) in itertools.product(SCENES, LIGHTS, itertools.product(ANIMALS, DEEDS)):
        key = scene + light + animal + deed
        colour, thing, layout = pick(COLOURS, key), pick(THINGS, f"{key} thing"), digest(key) % 2
        parts = (f"{scene} {light}", f"{one(animal)} {deed}", one(f"{colour} {thing}"))
        form = (
            "{}. In the foreground {}, and next to it {}. Muted colours, fine detail, calm mood",
            "{1} in front of {0}; {2} stands a little to the side, everything drawn with thin ink lines and pale washes",
        )[layout]
        yield Prompt(form.format(*parts), (pair(scene, light), pair(animal, deed), pair(colour, thing)))


KINDS = (
    *(objects, counts, colours, bindings, relations, scenes, styles, materials, lettering, deeds, people),
    stories,
)


def split(kind) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts of one kind, the first ones by digest."""
    train: list[Prompt] = []
    held_out: list[Prompt] = []
    for prompt in sorted(kind(), key=lambda prompt: (digest(prompt.text), prompt.text)):
        part, wanted = (held_out, HELD_OUT) if any(map(is_held_out, prompt.pairs)) else (train, TRAIN)
        if len(part) < wanted:
            part.append(prompt)
    if len(train) < TRAIN or len(held_out) < HELD_OUT:
        raise ValueError(f"{kind.__name__}: {len(train)} + {len(held_out)} prompts; give it more words")
    return train, held_out


def splits() -> tuple[list[Prompt], list[Prompt]]:
    """All training and all held-out prompts, kinds taken in turns so that any first rows hold every kind."""
    parts = [split(kind) for kind in KINDS]
    train, held_out = (list(zip(*(part[side] for part in parts), strict=True)) for side in (0, 1))
    return list(itertools.chain(*train)), list(itertools.chain(*held_out))


def normalised(text: str) -> str:
    """Lower-case words without articles and without a leading "photo of": what makes two prompts the same."""
    words = " ".join(re.findall(r"[a-z0-9]+", text.lower()))
    words = re.sub(r"\b(?:a|an|the)\b ?", "", words)
    return re.sub(r"^(?:(?:photo|picture|image) of )+", "", words).strip()


def overlap(prompts: list[str], listed: list[str]) -> list[str]:
    """Those of ``prompts`` that a list has too, case, punctuation, articles and "a photo of" aside."""
    known = {normalised(line) for line in listed if line.strip()}
    return [prompt for prompt in prompts if normalised(prompt) in known]


def read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def main() -> int:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description="Write the prompt files, or compare prompts with a benchmark's.")
    parser.add_argument("--output", type=Path, default=here, help="folder for the files (default: this one)")
    parser.add_argument("--against", type=Path, help="a benchmark's prompts, one a line; nothing is written")
    parser.add_argument("files", nargs="*", type=Path, help="prompts to compare (default: the two files here)")
    arguments = parser.parse_args()
    if arguments.against:
        files = arguments.files or [here / name for name in FILES]
        shared = overlap([line for file in files for line in read(file)], read(arguments.against))
        sys.stdout.write("".join(f"{text}\n" for text in shared) + f"{len(shared)} prompts in common\n")
        return 1 if shared else 0
    for name, prompts in zip(FILES, splits(), strict=True):
        text = "".join(f"{prompt.text}\n" for prompt in prompts)
        (arguments.output / name).write_text(text, encoding="utf-8", newline="\n")
        sys.stdout.write(f"{name}: {len(prompts)} prompts\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
