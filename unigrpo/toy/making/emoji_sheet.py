"""What a run of ``quickstart_emoji`` changed: ``python -m unigrpo.toy.making.emoji_sheet runs/quickstart_emoji sheet.png``.

Held-out captions are drawn by the shipped policy and by the trained one, from the same random numbers, at temperature 1. The sheet
shows the first captions whose picture was wrong before and is right and clear after, by the check in pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from ...rollout.generate import load_policy
from ...terminal import say
from ...training.contact_sheet import contact_sheet
from .. import emoji
from ..emoji_check import clear_picture, right_picture
from .figures import emoji_pictures


SHOWN = 6


def drawn(model: str, captions: list[str]) -> list[Image.Image]:
    """A picture of each caption, as the quickstart draws them."""
    return emoji_pictures(load_policy(model, dtype="float32", device="cpu"), captions)


def main(words: list[str] | None = None) -> None:
    """The command line; ``words`` default to ``sys.argv``'s."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="what the run left")
    parser.add_argument("picture", type=Path)
    args = parser.parse_args(words)
    captions = [row["prompt"] for row in emoji.problems("test", 120)]
    before, after = drawn("builtin:emoji", captions), drawn(args.folder, captions)
    right = [
        [right_picture(own, said) for own, said in zip(images, captions, strict=True)] for images in (before, after)
    ]
    clear = [clear_picture(own, said) for own, said in zip(after, captions, strict=True)]
    changed = [place for place, (old, new) in enumerate(zip(right[0], clear, strict=True)) if new and not old][:SHOWN]
    rows = [[images[place] for place in changed] for images in (before, after)]
    labels = {"row_labels": ["before training", "after training"], "column_labels": [captions[own] for own in changed]}
    contact_sheet(rows, **labels, cell=3 * emoji.SIDE).save(args.picture)
    say(f"of {len(captions)} pictures {sum(right[0])} right before and {sum(right[1])} after; wrote {args.picture}")


if __name__ == "__main__":
    main()
