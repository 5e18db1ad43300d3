"""An evaluation's folder: whose it is, what is answered there already, and how lines get into it.

``results.json`` says at once what is measured, and has the numbers at the end. ``answers.jsonl`` has a line an answer. Each further process
writes a file of its own beside it, ``answers.part1.jsonl`` ..., which is taken into it at the end, or when the command is called again.
"""

from __future__ import annotations

import itertools
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import CheckpointError
from ...training.checkpoints.files import check_writable, named, write_json, write_text
from ...training.checkpoints.lock import locked


RESULTS, ANSWERS, IMAGES = "results.json", "answers.jsonl", "images"
HOME = Path("runs") / "evaluations"

Key = tuple[str, int, int]
"""Task, row and sample of an answer."""


def key_of(answer: dict[str, Any]) -> Key:
    return answer["task"], answer["row"], answer["sample"]


def default_name(path: str) -> str:
    """What the evaluation of the model at ``path`` is called: the last part, with the run's name before a checkpoint's."""
    parts = [part for part in path.rpartition(":")[2].replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return "-".join(parts[-2:] if parts[-1:] and parts[-1].startswith("checkpoint-") else parts[-1:]) or "model"


def read_results(folder: Path) -> dict[str, Any] | None:
    """``results.json`` of a folder; None where there is none.

    Raises:
        ValueError: it is no evaluation's.
    """
    path = folder / RESULTS
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): it is no evaluation's, or damaged") from error
    if not isinstance(found, dict) or "tasks" not in found or "seed" not in found:
        raise ValueError(f"{path} is no evaluation's: it has no 'tasks' and 'seed'")
    return found


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``answers.jsonl`` and of all parts, in order of task, row and sample; one that a killed process cut short is left out.

    So are answers whose picture is not there.
    """
    found: dict[Key, dict[str, Any]] = {}
    for path in [folder / ANSWERS, *sorted(folder.glob("answers.part*.jsonl"))]:
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                own = json.loads(line)
                key = key_of(own)
            except (ValueError, KeyError, TypeError):
                continue
            if own.get("picture") and not (folder / own["completion"]).is_file():
                continue
            found.setdefault(key, own)
    return [found[key] for key in sorted(found)]


def part(folder: Path, rank: int) -> Path:
    """The file that the process of this rank writes."""
    return folder / (ANSWERS if rank == 0 else f"answers.part{rank}.jsonl")


def gather(folder: Path) -> list[dict[str, Any]]:
    """All answers, now in ``answers.jsonl`` alone."""
    answers = read_answers(folder)
    with named(folder / ANSWERS):
        write_text(folder / ANSWERS, "".join(f"{json.dumps(own)}\n" for own in answers))
    for path in folder.glob("answers.part*.jsonl"):
        path.unlink()
    return answers


def settle(asked: str | None, path: str, identity: dict[str, Any], lock: ExitStack) -> Path:
    """The folder of this evaluation, locked; made where it is new.

    ``asked``, or one below ``runs/evaluations`` that is called after the model: the first that is free, or of this evaluation.

    Raises:
        CheckpointError: the folder that was asked for holds another evaluation, or is in use.
    """
    first = Path(asked) if asked else HOME / default_name(path)
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        check_writable(folder)
        known = read_results(folder)
        differing = None if known is None else difference(known, identity)
        if differing is None:
            lock.enter_context(locked(folder))
            if known is None:
                with named(folder / RESULTS):
                    write_json(folder / RESULTS, {**identity, "finished": False})
            return folder
        if asked:
            raise CheckpointError(
                f"{folder} holds another evaluation, with {differing}: set another output_dir, or call it as that one was"
            )
    raise AssertionError("there is always a next number")


def difference(known: dict[str, Any], identity: dict[str, Any], skip: tuple[str, ...] = ()) -> str | None:
    """The first key in which two evaluations differ, with both values; None where they are the same measurement."""
    for key in ("model", "seed", "settings", "tasks"):
        if key in skip:
            continue
        found = _first(key, _identity(known.get(key), key), _identity(identity.get(key), key))
        if found is not None:
            return found
    return None


IDENTITY = ("dataset", "template", "judge", "num_samples")
"""What of a task's entry says which measurement it is; the rest are numbers. Of a dataset the rows say it, wherever they lie."""


def _identity(value: Any, key: str) -> Any:
    if key != "tasks" or not isinstance(value, dict):
        return value
    found = {name: {own: entry.get(own) for own in IDENTITY} for name, entry in value.items()}
    for entry in found.values():
        entry["dataset"] = {own: (entry["dataset"] or {}).get(own) for own in ("rows", "fingerprint")}
    return found


def _first(where: str, one: Any, other: Any) -> str | None:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            found = _first(f"{where}.{key}", one.get(key), other.get(key))
            if found is not None:
                return found
        return None
    return None if one == other else f"{where} {_shown(one)}, not {_shown(other)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def save_picture(folder: Path, key: Key, picture: Image.Image) -> str:
    """Writes the picture of an answer; its path in the folder."""
    task, row, sample = key
    name = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in task)
    path = Path(IMAGES) / name / f"{row:05d}_{sample:02d}.png"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    with named(folder / path):
        picture.save(folder / path)
    return path.as_posix()
