"""Tasks of the package reasoning-gym as dataset rows. Run by path it writes them: questions depend on the seed of hashes."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import random
import subprocess
import sys
import zlib
from typing import Any


GYM = "reasoning_gym:"
"""Datasets are called ``reasoning_gym:TASK``."""

SEEDS = {"train": 0, "test": 2**30}
"""First random seed of a split. Question number i has seed + i, so the splits do not meet."""

SIZE = 500
"""Questions of a split where no limit is given."""


def problems(task: str, split: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Rows ``prompt``, ``solution`` and ``reasoning_gym``: the question, an answer, and what the reward of that name reads.

    The questions of a split are always the same with one version of reasoning-gym. ``solution`` is None where the task gives
    no answer because many are right.

    Args:
        task: its name in reasoning-gym, such as ``"chain_sum"``.
        split: ``"train"`` or ``"test"``.
        limit: how many questions; None = 500.

    Raises:
        ValueError: the package is not installed, an unknown task, split, or number of questions.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ValueError(
            'it needs the package reasoning-gym, which is not installed: `pip install "unigrpo[reasoning-gym]"`'
        )
    if split not in SEEDS:
        raise ValueError(f"split={split!r}: choose one of {list(SEEDS)}")
    size = SIZE if limit is None else limit
    if size < 1:
        raise ValueError(f"limit={limit} must be at least 1")
    source = {"task": task, "seed": SEEDS[split], "size": size}
    done = subprocess.run(
        [sys.executable, "-P", __file__, json.dumps(source)],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        made = json.loads(done.stdout)
    except ValueError:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise ValueError(f"reasoning-gym does not make its questions ({reason})") from None
    if "names" in made:
        near = difflib.get_close_matches(task, made["names"], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {made['names']}"
        raise ValueError(f"reasoning-gym has no task {task!r}: {hint}")
    return [
        {
            "prompt": question,
            "solution": answer,
            "reasoning_gym": json.dumps({**source, "index": index, "crc32": zlib.crc32(question.encode())}),
        }
        for index, (question, answer) in enumerate(made["rows"])
    ]


def _main() -> None:
    """Writes ``{"rows": [[question, answer], ...]}``, or ``{"names": [...]}`` of all tasks for one that is not there."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print is not what was asked for.
    source = json.loads(sys.argv[1])
    from reasoning_gym.factory import DATASETS, create_dataset

    names = sorted(DATASETS.keys() - {"composite"})  # That one is made of the others, and needs to be told of which.
    if source["task"] not in names:
        json.dump({"names": names}, channel)
        return
    dataset, rows = create_dataset(source["task"], seed=source["seed"], size=source["size"]), []
    for index in range(source["size"]):
        random.seed(0)  # A few tasks draw from it too.
        entry = dataset[index]
        rows.append([entry["question"], entry["answer"]])
    json.dump({"rows": rows}, channel)


if __name__ == "__main__":
    _main()
