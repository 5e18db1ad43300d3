"""How answers were written, step by step: tokens and codes with the denoising step that wrote each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from PIL import Image

from ..models import DiffusionPolicy
from ..training.checkpoints.files import named, write_json
from ..training.completions import words
from ..training.contact_sheet import data_uri
from ..types import Rollout, Sample


OF_A_TASK = 2
"""Answers of each task that a run records."""


def record_denoising(samples: list[Sample], policy: DiffusionPolicy, folder: Path, label: str) -> None:
    """Leaves ``denoising_<label>.json`` in ``folder`` with the first answers of each task."""
    path = folder / f"denoising_{label}.json"
    with named(path):
        write_json(path, denoising(samples, policy, OF_A_TASK))


def denoising(samples: list[Sample], policy: DiffusionPolicy, most: int) -> list[dict[str, Any]]:
    """The first ``most`` answers of each task, each with ``prompt``, ``gold`` where there is one, and ``spans``.

    A span is what was written at once: ``steps``, from 0, of each position, and its ``tokens``, or a ``picture`` as data URI and the
    ``columns`` of its grid of codes. The thought of ``r2i`` is a span before its picture.
    """
    taken: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        own = taken.setdefault(sample.task, [])
        if len(own) < most and sample.rollout is not None:
            spans = [_span(rollout, sample, policy) for rollout in sample.rollouts]
            gold = sample.row.get("solution")
            said = {"prompt": words(sample.row["prompt"]), "task": sample.task, "spans": spans}
            own.append(said | ({} if gold is None else {"gold": str(gold)}))
    return [entry for own in taken.values() for entry in own]


def _span(rollout: Rollout, sample: Sample, policy: DiffusionPolicy) -> dict[str, Any]:
    written = rollout.step_map[0] >= 0
    steps, ids = rollout.step_map[0][written].tolist(), rollout.canvas.ids[0][written].tolist()
    if rollout is sample.rollout and isinstance(sample.completion, Image.Image):
        picture = sample.completion
        columns = round(math.sqrt(len(ids) * picture.width / picture.height))
        return {"steps": steps, "picture": data_uri(picture), "columns": columns}
    tokenizer = getattr(policy.processor, "tokenizer", policy.processor)
    return {"steps": steps, "tokens": [tokenizer.decode([token]) for token in ids]}
