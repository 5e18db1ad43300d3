"""Pictures on a labelled grid, to look at many at once."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont


PAPER, INK, FAINT, FRAME = (255, 255, 255), (32, 33, 36), (110, 113, 120), (214, 216, 221)
GAP, MARGIN = 8, 16
LABEL_WIDTH = 168
LABEL_SIZE, TITLE_SIZE = 14, 20
CAPTION_SIZE, CAPTION_LINES = 11, 3
LINE_SPACING = 4

PLAIN_SIDE = 128
"""The side in pixels up to which a picture inside a page is kept without loss."""


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    title: str | None = None,
    cell: int = 96,
) -> Image.Image:
    """The pictures of ``rows`` in cells of ``cell`` x ``cell`` pixels, one line a row, as one RGB image.

    Args:
        rows: pictures of any size and mode; a row may be shorter than another. A small picture is enlarged by a whole
            factor without blurring, a large one is reduced; the aspect is kept.
        row_labels: one a row, at the left, wrapped, and cut with an ellipsis where it needs more lines than fit.
        column_labels: one a column of the longest row, above it; none at all is allowed.
        captions: what stands under each picture, shaped like ``rows``; none at all is allowed.
        title: a line above everything.
        cell: pixels, at least 32, so that a label has room beside it.

    Raises:
        ValueError: no pictures, a wrong number of labels, or a small ``cell``.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise ValueError("rows: no picture to show")
    if len(row_labels) != len(rows):
        raise ValueError(f"row_labels: {len(row_labels)} for {len(rows)} rows; give one a row")
    if len(column_labels) not in (0, columns):
        raise ValueError(f"column_labels: {len(column_labels)} for {columns} columns; give one a column, or none")
    if captions and [len(own) for own in captions] != [len(row) for row in rows]:
        raise ValueError("captions: give one a picture, in the shape of rows, or none")
    if cell < 32:
        raise ValueError(f"cell={cell}: give at least 32 pixels")
    label, heading = _Font.of(LABEL_SIZE), _Font.of(TITLE_SIZE)
    label_width = LABEL_WIDTH if any(row_labels) else 0
    width = 2 * MARGIN + label_width + columns * (cell + GAP) - GAP
    title_lines = heading.wrap(title, width - 2 * MARGIN, most=3) if title else []
    head_lines = [label.wrap(text, cell, most=3) for text in column_labels]
    title_height = len(title_lines) * heading.line + (GAP if title_lines else 0)
    head_height = max((len(lines) for lines in head_lines), default=0) * label.line
    top = MARGIN + title_height + head_height + (GAP if head_height else 0)
    small = _Font.of(CAPTION_SIZE)
    under = [[small.wrap(text, cell, most=CAPTION_LINES) for text in own] for own in captions] or [
        [[]] * len(row) for row in rows
    ]
    caption_height = max(len(lines) for own in under for lines in own) * small.line
    pitch = cell + GAP + caption_height
    height = top + len(rows) * pitch - GAP + MARGIN

    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    heading.write(draw, title_lines, MARGIN, MARGIN, INK)
    for column, lines in enumerate(head_lines):
        left = MARGIN + label_width + column * (cell + GAP)
        bottom = MARGIN + title_height + head_height
        label.write(draw, lines, left + cell // 2, bottom - len(lines) * label.line, FAINT, anchor="ma")
    for index, (row, text) in enumerate(zip(rows, row_labels, strict=True)):
        y = top + index * pitch
        lines = label.wrap(text, label_width - 2 * GAP, most=max(1, cell // label.line)) if text else []
        label.write(draw, lines, MARGIN, y + (cell - len(lines) * label.line + LINE_SPACING) // 2, INK)
        for column, picture in enumerate(row):
            x = MARGIN + label_width + column * (cell + GAP)
            _place(sheet, draw, picture, x, y, cell)
            small.write(draw, under[index][column], x + cell // 2, y + cell + LINE_SPACING // 2, FAINT, anchor="ma")
    return sheet


class Drawn(NamedTuple):
    """A picture that was drawn for ``prompt``, what stands under it (a thought), and the picture that the prompt showed."""

    prompt: str
    picture: Image.Image
    caption: str = ""
    shown: Image.Image | None = None


def grouped_sheet(drawn: Iterable[Drawn], *, rows: int, columns: int, title: str | None = None) -> Image.Image:
    """The first ``columns`` pictures of each of the first ``rows`` prompts, behind the picture that a prompt showed. ``drawn`` is read
    one by one, and what is not shown is let go.

    Raises:
        ValueError: no pictures.
    """
    groups: dict[Any, list[Drawn]] = {}
    for own in drawn:
        key = (own.prompt, own.shown and own.shown.tobytes())
        if key in groups or len(groups) < rows:
            line = groups.setdefault(key, [])
            line += [own] if len(line) < columns else []
    lines = list(groups.values())
    for line in lines:
        if line[0].shown is not None:
            line.insert(0, Drawn(line[0].prompt, line[0].shown, "shown"))
    return contact_sheet(
        [[own.picture for own in line] for line in lines],
        row_labels=[line[0].prompt for line in lines],
        captions=[[own.caption for own in line] for line in lines]
        if any(own.caption for line in lines for own in line)
        else (),
        title=title,
    )


def data_uri(picture: Image.Image) -> str:
    """A picture inside a page: PNG of a small one, else JPEG."""
    kind = "png" if max(picture.size) <= PLAIN_SIDE else "jpeg"
    file = io.BytesIO()
    picture.convert("RGB").save(file, kind, **({} if kind == "png" else {"quality": 90}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _place(sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image, x: int, y: int, cell: int) -> None:
    longest = max(picture.size)
    if longest <= cell:
        factor = cell // longest
        fitted = picture.resize((picture.width * factor, picture.height * factor), Image.NEAREST)
    else:
        ratio = cell / longest
        size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
        fitted = picture.convert("RGB").resize(size, Image.LANCZOS)
    left, top = x + (cell - fitted.width) // 2, y + (cell - fitted.height) // 2
    sheet.paste(fitted.convert("RGB"), (left, top))
    draw.rectangle((left - 1, top - 1, left + fitted.width, top + fitted.height), outline=FRAME)


@dataclass(frozen=True)
class _Font:
    """A font, and the pixels from one line to the next."""

    face: ImageFont.FreeTypeFont | ImageFont.ImageFont
    line: int

    @classmethod
    def of(cls, size: int) -> _Font:
        return cls(ImageFont.load_default(size), size + LINE_SPACING)

    def wrap(self, text: str, width: int, most: int) -> list[str]:
        """``text`` in at most ``most`` lines of at most ``width`` pixels; what does not fit ends in an ellipsis."""
        lines: list[str] = []
        for word in text.split():
            joined = f"{lines[-1]} {word}" if lines else word
            if lines and self.face.getlength(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(word)
        if len(lines) > most:
            lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
        return [self._cut(line, width) for line in lines]

    def _cut(self, line: str, width: int) -> str:
        if self.face.getlength(line) <= width:
            return line
        while line and self.face.getlength(f"{line}…") > width:
            line = line[:-1]
        return f"{line.rstrip()}…"

    def write(self, draw: ImageDraw.ImageDraw, lines: list[str], x: int, y: int, fill, anchor: str = "la") -> None:
        for number, text in enumerate(lines):
            draw.text((x, y + number * self.line), text, font=self.face, fill=fill, anchor=anchor)
