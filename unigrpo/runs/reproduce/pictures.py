"""A card as a page and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ...terminal import visible
from ...training.contact_sheet import FAINT, FRAME, INK, PAPER
from ..report.curves import Curve, figure, running_mean
from ..report.markup import escaped, folded, pairs, section
from ..report.page import document
from ..report.read import RunFolder
from .card import measure_name, shown_numbers


SIZE, EDGE = (1200, 630), 56
BLUE, GREEN, ORANGE = (31, 111, 235), (43, 138, 62), (201, 91, 18)


def card_page(card: dict[str, Any], run: RunFolder) -> str:
    """The card as one page without a network."""
    large, small = shown_numbers(card)
    curve = figure(Curve(title="Reward", lines={"reward": run.points("reward")}))
    first = ("budget", "changed", "hardware", "steps", "seconds", "finished", "hash")
    body = section(
        "Result",
        f'<div class="headline"><p class="what">{escaped(measure_name(card))}</p><p class="figures">{escaped(large)}</p>'
        f'<p>{escaped(small)}</p><p class="verdict">{escaped(card["verdict"])}</p></div>',
        note=f"Expectation from: {escaped(card['expected']['source'])}",
    )
    body += section("Curve", f'<div class="charts">{curve}</div>') if curve else ""
    body += section("What it was", pairs({key: card[key] for key in first}))
    body += folded("Versions", pairs({**card["versions"], "code": card["code"]}))
    body += folded("Settings", pairs(card["settings"]))
    return document(card["title"], f"unigrpo reproduce {card['name']}", body)


def card_picture(card: dict[str, Any], run: RunFolder) -> Image.Image:
    """The card as an RGB picture of ``SIZE``."""
    picture = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(picture)
    large, small = shown_numbers(card)
    good = card["verdict"].startswith("reproduced")

    def write(y: int, text: str, size: int, fill: tuple[int, int, int], width: int = SIZE[0] - 2 * EDGE) -> int:
        font = ImageFont.load_default(size)
        for line in wrapped(visible(text), font, width):
            draw.text((EDGE, y), line, font=font, fill=fill)
            y += round(size * 1.3)
        return y

    y = write(46, f"unigrpo reproduce {card['name']}  ·  {card['budget']}", 22, FAINT)
    y = write(y + 6, card["title"], 32, INK)
    y = write(y + 18, measure_name(card), 22, FAINT, 640)
    y = write(y + 2, large.replace("→", "->"), 60, INK, 640)
    y = write(y + 6, card["verdict"], 24, GREEN if good else ORANGE, 640)
    write(y + 8, small, 19, FAINT, 640)
    own, versions = card["versions"], card["versions"].get
    foot = f"{card['steps']} steps in {card['seconds']} s on {card['hardware']}, {card['finished'][:10]}"
    stack = (
        f"unigrpo {versions('unigrpo')}, torch {versions('torch')}, transformers {versions('transformers')}"
        if own
        else ""
    )
    write(SIZE[1] - 104, f"{foot}. {stack}. Code {card['code']}", 17, FAINT)
    write(SIZE[1] - 46, f"sha256 {card['hash']}", 14, FAINT)
    _curve(draw, run.points("reward"))
    return picture


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, at most three."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines[:3]


def _curve(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]]) -> None:
    """The running mean of the reward, at the right."""
    left, top, right, bottom = 770, 190, SIZE[0] - EDGE, 470
    draw.line((left, top, left, bottom, right, bottom), fill=FRAME, width=2)
    font = ImageFont.load_default(17)
    draw.text((left, bottom + 8), "mean reward over optimizer steps", font=font, fill=FAINT)
    if len(points) < 2:
        return
    means = running_mean(points)
    steps, values = zip(*means, strict=True)
    low, spread = min(values), (max(values) - min(values)) or 1.0
    reach = (steps[-1] - steps[0]) or 1.0
    placed = [
        (
            left + 8 + (x - steps[0]) / reach * (right - left - 16),
            bottom - 12 - (y - low) / spread * (bottom - top - 40),
        )
        for x, y in means
    ]
    draw.line(placed, fill=BLUE, width=4, joint="curve")
    for x, (_, y), value, anchor in (
        (left - 6, placed[0], values[0], "rm"),
        (right + 6, placed[-1], values[-1], "lm"),
    ):
        draw.text((x, y), f"{value:.2f}", font=font, fill=INK, anchor=anchor)


def write_pictures(card: dict[str, Any], run: RunFolder, folder: Path) -> None:
    """``card.html`` and ``card.png`` in ``folder``."""
    (folder / "card.html").write_text(card_page(card, run), encoding="utf-8")
    card_picture(card, run).save(folder / "card.png")
