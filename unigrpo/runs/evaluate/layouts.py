"""Folder layouts in which other benchmarks' own code looks for pictures.

Each reads that benchmark's file of prompts, and writes what its code reads: names, folders and grids as its README and scripts have them.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import RecipeError, SourceError
from ..dataset_spec import DatasetSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A benchmark's prompts and pictures.

    Attributes:
        of: the benchmark's name.
        reads: what its file of prompts is, for messages.
        rows: ``f(path) -> rows`` with ``prompt`` and ``key``, what the picture is called by.
        place: ``f(row, number, model, pictures) -> {path: what}`` of one prompt: pictures (a list: as one grid), texts.
        counts: how many pictures a prompt may have; None = any number.
        index: file that maps each prompt to the path of its first picture, if there is one.
    """

    of: str
    reads: str
    rows: Callable[[Path], list[dict[str, str]]]
    place: Callable[[dict[str, Any], int, str, list[Path]], dict[str, Any]]
    counts: tuple[int, ...] | None = None
    index: str | None = None

    def read(self, spec: DatasetSpec) -> Any:
        """The rows of its file of prompts.

        Raises:
            ValueError: it is not that file.
        """
        from datasets import Dataset

        path = Path(str(spec.path))
        if not path.exists():
            raise SourceError(f"{str(path)!r} is not there: give {self.reads} of {self.of}")
        try:
            rows = self.rows(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecipeError(
                f"{str(path)!r} is not {self.reads} of {self.of} ({type(error).__name__}: {error})"
            ) from error
        return Dataset.from_list(rows[: spec.limit])

    def check(self, num_samples: int) -> None:
        """Raises ``ValueError`` for a number of pictures that its grids cannot hold."""
        if self.counts is not None and num_samples not in self.counts:
            choices = " or ".join(map(str, self.counts))
            raise ValueError(
                f"{self.of} reads {choices} pictures a prompt: --num-samples={num_samples} is none of them"
            )

    def write(self, out: Path, rows: Any, pictures: dict[int, list[Path]], model: str) -> None:
        """Writes the layout into ``out``; ``pictures`` are those of each row."""
        out.mkdir(parents=True, exist_ok=True)
        index = {}
        for number, paths in sorted(pictures.items()):
            for name, what in self.place(rows[number], number, model, paths).items():
                path = out / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(what, str):
                    path.write_text(what, encoding="utf-8")
                elif isinstance(what, list):
                    grid(what).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))
                else:
                    shutil.copyfile(what, path)
            index[rows[number]["prompt"]] = str(paths[0].resolve())
        if self.index is not None:
            (out / self.index).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def grid(paths: list[Path]) -> Image.Image:
    """A square number of pictures of one size in a square, row by row; one alone as it is."""
    pictures = []
    for path in paths:
        with Image.open(path) as picture:
            pictures.append(picture.convert("RGB"))
    side, (width, height) = isqrt(len(pictures)), pictures[0].size
    sheet = Image.new("RGB", (side * width, side * height))
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % side * width, place // side * height))
    return sheet


def _lines(path: Path) -> list[dict[str, str]]:
    """JSON lines with a ``prompt``; each keeps its line as it is written."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [
        {"prompt": str(json.loads(line)["prompt"]), "key": f"{number:05d}", "line": line}
        for number, line in enumerate(lines)
    ]


def _wise_rows(path: Path) -> list[dict[str, str]]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [{"prompt": str(row["Prompt"]), "key": str(row["prompt_id"])} for row in rows]


def _dpg_rows(path: Path) -> list[dict[str, str]]:
    files = sorted(path.glob("*.txt"))
    if not files:
        raise ValueError("it holds no .txt files")
    return [{"prompt": file.read_text(encoding="utf-8").strip(), "key": file.stem} for file in files]


ONEIG = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
    "Multilingualism": "multilingualism",
}
"""Categories of OneIG-Bench and their folders."""


def _oneig_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    column = "prompt_en" if rows and "prompt_en" in rows[0] else "prompt_cn"
    return [{"prompt": row[column], "key": row["id"], "folder": ONEIG[row["category"]]} for row in rows]


def _place_geneval(row: dict[str, Any], number: int, model: str, pictures: list[Path]) -> dict[str, Any]:
    samples = {f"{number:05d}/samples/{place:04d}.png": path for place, path in enumerate(pictures)}
    return {f"{number:05d}/metadata.jsonl": row["line"] + "\n", **samples}


def _place_oneig(row: dict[str, Any], number: int, model: str, pictures: list[Path]) -> dict[str, Any]:
    return {f"images/{row['folder']}/{model}/{row['key']}.webp": pictures}


LAYOUTS: dict[str, Layout] = {
    "geneval": Layout(of="GenEval", reads="the evaluation_metadata.jsonl", rows=_lines, place=_place_geneval),
    "geneval2": Layout(
        of="GenEval 2",
        reads="the geneval2_data.jsonl",
        rows=_lines,
        place=lambda row, number, model, pictures: {},
        index="image_paths.json",
    ),
    "wise": Layout(
        of="WISE",
        reads="a JSON file of prompts",
        rows=_wise_rows,
        place=lambda row, number, model, pictures: {f"{row['key']}.png": pictures[0]},
    ),
    "dpg": Layout(
        of="DPG-Bench",
        reads="the folder of prompts, a .txt file each,",
        rows=_dpg_rows,
        place=lambda row, number, model, pictures: {f"{row['key']}.png": pictures},
        counts=(1, 4),
    ),
    "oneig": Layout(
        of="OneIG-Bench", reads="the OneIG-Bench.csv", rows=_oneig_rows, place=_place_oneig, counts=(1, 4)
    ),
}
"""The README of GenEval, GenEval 2 and OneIG-Bench, ``gpt_eval.py`` of WISE and ``compute_dpg_bench.py`` of ELLA say what is read."""
