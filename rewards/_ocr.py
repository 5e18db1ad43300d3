"""Is the text that was asked for written in the picture?"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any

from PIL import Image

from ..errors import import_named
from ._arguments import wrong_value
from .text import user_text


Reader = Callable[[Image.Image], str]

LONGEST = 1_000
"""Characters of a text that are compared, counted from its start."""

INSTALL = 'pip install "unigrpo[ocr]"'
QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|«([^»]+)»')


class Ocr:
    """1 - edit distance / length, between the text a picture was to show and what is read in it; range [0, 1].

    As Flow-GRPO's reward for rendered text (arXiv 2505.05470): case and spaces do not count, more errors than the text has
    characters score 0.0, and other text beside it costs nothing. What is read are the lines from top to bottom, joined.

    The text is the column ``text``, or where that is None or absent what the prompt has in double quotes, several pieces
    joined. None where a completion is no picture or a broken one, and where no text is asked for.

    Args:
        reader: what reads an RGB picture, a function of one or its ``pkg.mod:attr``; None is RapidOCR, PaddleOCR's v4 models
            in ONNX on the CPU, whose weights come with its package.

    Raises:
        ImportError: without ``reader``, if RapidOCR is not installed or does not start.
        ValueError: ``reader`` leads nowhere or cannot be called.
    """

    __name__ = "ocr"
    NAMES_CODE = ("reader",)

    def __init__(self, *, reader: str | Reader | None = None) -> None:
        if isinstance(reader, str):
            reader = import_named(reader)
        if reader is None:
            if importlib.util.find_spec("rapidocr_onnxruntime") is None:
                raise ImportError(f"ocr needs the package rapidocr-onnxruntime, which is not installed: `{INSTALL}`")
        elif not callable(reader):
            raise ValueError(f"ocr: reader must be a function of a picture or its 'pkg.mod:attr' path, got {reader!r}")
        self._reader = reader

    def __call__(
        self,
        prompts: list,
        completions: list,
        text: list[str | None] | None = None,
        reward_prompt: list | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """One score a row. ``log_metric`` gets ``ocr/failed``, the pictures that cannot be read; ``log_extra`` what was read.

        Args:
            text: dataset column: what the picture is to show.

        Raises:
            ImportError: RapidOCR does not start.
            ValueError: a value of ``text`` that is none.
        """
        nothing = [None] * len(completions)
        rows = zip(completions, text or nothing, reward_prompt or nothing, prompts, strict=True)
        wanted = {
            place: asked
            for place, (picture, own, short, prompt) in enumerate(rows)
            if isinstance(picture, Image.Image) and (asked := wanted_text(own, prompt if short is None else short))
        }
        if not wanted:
            return nothing
        if self._reader is None:
            self._reader = rapid_reader()
        read: dict[int, str] = {}
        for place in wanted:
            try:
                picture = completions[place].convert("RGB")
            except (OSError, ValueError, SyntaxError):  # what PIL raises for a broken picture
                continue
            read[place] = self._reader(picture)
        if log_metric is not None:
            log_metric("ocr/failed", float(len(wanted) - len(read)))
        if log_extra is not None:
            log_extra("ocr", [read.get(place) for place in range(len(completions))])
        return [likeness(wanted[place], read[place]) if place in read else None for place in range(len(completions))]


def wanted_text(column: Any, prompt: Any) -> str | None:
    """What a row's picture is to show: the column, or what the prompt quotes; None where there is neither."""
    if column is not None:
        if not isinstance(column, str):
            raise wrong_value("ocr", "text", column, "a text, or null where the picture is to show none")
        return _bare(column) or None
    return _bare("".join("".join(pieces) for pieces in QUOTED.findall(user_text(prompt) or ""))) or None


def likeness(wanted: str, read: str) -> float:
    """``1 - min(d, n) / n`` with the edit distance d to the n characters wanted, 1.0 where they stand in what is read."""
    wanted, read = _bare(wanted), _bare(read)
    if wanted in read:
        return 1.0
    return 1 - min(edit_distance(wanted, read), len(wanted)) / len(wanted)


def edit_distance(one: str, two: str) -> int:
    """Levenshtein's: the fewest insertions, deletions and replacements of a character that make one text of the other."""
    row = list(range(len(two) + 1))
    for i, left in enumerate(one, 1):
        last = row
        row = [i]
        for j, right in enumerate(two, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (left != right)))
    return row[-1]


def _bare(text: str) -> str:
    return "".join(text.split()).casefold()[:LONGEST]


def rapid_reader() -> Reader:
    """RapidOCR as a reader.

    Raises:
        ImportError: it, or the OpenCV that it stands on, does not start.
    """
    try:
        from rapidocr_onnxruntime import RapidOCR

        engine = RapidOCR()
    except ImportError as error:
        cure = INSTALL
        if ".so" in str(error):  # OpenCV's wheel with windows wants libraries of a desktop.
            cure = "pip uninstall -y opencv-python; pip install opencv-python-headless"
        raise ImportError(f"ocr: RapidOCR does not start ({error}): `{cure}`") from error

    import numpy as np

    def read(picture: Image.Image) -> str:
        lines, _ = engine(np.asarray(picture)[:, :, ::-1])  # It reads blue first.
        return "".join(line for _, line, _ in lines or [])

    return read
