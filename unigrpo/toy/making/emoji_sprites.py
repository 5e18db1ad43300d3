"""Draws the sprites of the emoji world from a font: ``python -m unigrpo.toy.making.emoji_sprites``.

The font is Noto Color Emoji (``apt-get install fonts-noto-color-emoji``), under the SIL Open Font License 1.1, whose text
stands beside the sprites. Only this module needs the font.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ...terminal import say
from ..emoji import CELL, COLUMNS, EMOJI, SPRITES


FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")

FONT_SIZE = 109
"""The one size at which this bitmap font can be drawn."""

INK = 57
"""Pixels of a cell's 64 that the longer side of an emoji fills: 21.4 of the 24 in a picture."""


def sheet(font: Path) -> Image.Image:
    """All sprites in the grid that ``emoji`` reads, RGBA."""
    face = ImageFont.truetype(str(font), FONT_SIZE)
    whole = Image.new("RGBA", (COLUMNS * CELL, -(-len(EMOJI) // COLUMNS) * CELL))
    for index, (character, *_) in enumerate(EMOJI.values()):
        y, x = divmod(index, COLUMNS)
        whole.paste(sprite(character, face), (x * CELL, y * CELL))
    return whole


def sprite(character: str, face: ImageFont.FreeTypeFont) -> Image.Image:
    """One cell: ``character`` cut to its ink, scaled to ``INK`` and centred."""
    large = Image.new("RGBA", (2 * FONT_SIZE, 2 * FONT_SIZE))
    ImageDraw.Draw(large).text((20, 20), character, font=face, embedded_color=True)
    ink = large.crop(large.getbbox())
    scale = INK / max(ink.size)
    ink = ink.resize(tuple(max(1, round(side * scale)) for side in ink.size), Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(ink, tuple((CELL - side) // 2 for side in ink.size))
    return cell


def main() -> None:
    """Command line: draws the sprites and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--output", type=Path, default=SPRITES)
    args = parser.parse_args()
    if not args.font.exists():
        parser.error(f"--font={args.font}: no such file; apt-get install fonts-noto-color-emoji")
    # A palette for each sprite would be smaller, but shows bands in the skin of fruits at this size.
    sheet(args.font).save(args.output, optimize=True)
    say(f"{args.output.stat().st_size / 1e6:5.2f} MB in {args.output}")


if __name__ == "__main__":
    main()
