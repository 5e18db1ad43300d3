"""``python -m tests.figures [mutants] [kills] [classes] [fuzz] [soak]``: the figures of ``tests/README.md``, measured again.

Without names all of them, which takes about an hour and three quarters. Each is kept in ``tests/figures.json``; the table in
``tests/README.md`` is written from that file. ``fuzz`` needs ``.[fuzz]``, ``classes`` counts DeepSpeed where ``.[deepspeed]`` is
installed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .soak import soak


HERE = Path(__file__).parent
FIGURES, README, PICTURE = HERE / "figures.json", HERE / "README.md", HERE / "soak.png"
TARGETS = ("recipe", "answers", "image", "checkpoint")
START, END = "<!-- figures -->", "<!-- /figures -->"


def printed(*arguments: str) -> str:
    """What ``python ...`` prints; an error ends the measurement."""
    done = subprocess.run([sys.executable, *arguments], cwd=HERE.parent, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"python {' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def kills(_: argparse.Namespace) -> dict[str, Any]:
    """Twenty kills in a row, for the whole model and for an adapter."""
    found = {}
    for kind in ("full", "lora"):
        with tempfile.TemporaryDirectory() as folder:
            text = printed("-m", "tests.support.crashing", folder, "--kind", kind, "--kills", "20", "--seed", "1")
        count, stages = re.search(r"crashes: (\d+) kills survived \((.*)\), metrics equal", text).groups()
        found[kind] = {"survived": int(count), "stages": stages}
    return found


def classes(_: argparse.Namespace) -> dict[str, Any]:
    """Divisions of one run over processes, accumulation and micro-batches that were equal to it, by engine."""
    names = "are_one or changes_nothing or change_nothing"
    files = ("tests/training/test_distributed.py", "tests/training/test_deepspeed.py")
    text = printed("-m", "pytest", "-q", "-s", *files, "-m", "slow or not slow", "-k", names)
    found: dict[str, int] = {}
    for engine in re.findall(r"^\.?equivalence class: (\w+)", text, flags=re.M):
        found[engine] = found.get(engine, 0) + 1
    return found


def fuzz(arguments: argparse.Namespace) -> dict[str, Any]:
    """Cases of a minute each, guided by coverage."""
    found = {}
    for target in TARGETS:
        text = printed("-m", "tests.fuzz", target, "--seconds", str(arguments.fuzz_seconds))
        cases, slowest = re.search(rf"fuzz {target}: (\d+) cases in \d+ s, 0 crashes, slowest (.*) s", text).groups()
        found[target] = {"cases": int(cases), "slowest_seconds": float(slowest)}
    return found


def an_hour(arguments: argparse.Namespace) -> dict[str, Any]:
    """The watched run, and its picture."""
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), arguments.soak_seconds)
        shutil.copy(Path(folder) / "soak.png", PICTURE)
    return found


def mutants(_: argparse.Namespace) -> dict[str, Any]:
    """Planted bugs that the tests find; one that they overlook ends the measurement."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "mutants.json"
        printed("-m", "tests.mutants", "--out", str(told))
        found = json.loads(told.read_text())
    return {name: found[name] for name in ("mutants", "killed", "by_time", "harmless")}


MEASURES = {"mutants": mutants, "kills": kills, "classes": classes, "fuzz": fuzz, "soak": an_hour}


def rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What, figure and the name to measure it again."""
    out = []
    if own := figures.get("mutants"):
        told = f"{own['killed']} of {own['mutants']}, {own['by_time']} of them by time"
        told += f"; harmless: {', '.join(own['harmless'])}" if own["harmless"] else ""
        out.append(("bugs planted in the mathematics that the tests of their room find", told, "mutants"))
    if own := figures.get("kills"):
        told = "; ".join(f"{kind}: {found['survived']} ({found['stages']})" for kind, found in own.items())
        out.append(("SIGKILLs in a row after which metrics and weights are the uninterrupted run's", told, "kills"))
    if own := figures.get("classes"):
        told = ", ".join(f"{engine} {count}" for engine, count in own.items())
        what = "divisions of a run (processes x accumulation x micro-batch) equal to one process"
        out.append((what, f"{sum(own.values())}: {told}", "classes"))
    if own := figures.get("fuzz"):
        told = ", ".join(f"{target} {found['cases']:,}" for target, found in own.items())
        slowest = max(found["slowest_seconds"] for found in own.values())
        what = "fuzz cases without a crash, guided by coverage"
        out.append((what, f"{told}; slowest {slowest:.1f} s", "fuzz"))
    if own := figures.get("soak"):
        told = (
            f"{own['memory_mb_an_hour']:+.1f} MB an hour at {own['memory_mb']:.0f} MB, "
            f"{own['handles_an_hour']:+.1f} handles, {own['threads_an_hour']:+.1f} threads; "
            f"{own['children_seen']} children seen, {own['orphans']} left"
        )
        out.append((f"a watched run of {own['minutes']:.0f} minutes, {own['steps']:,} steps", told, "soak"))
    return out


def between(text: str, start: str, end: str, lines: list[str]) -> str:
    """``text`` with ``lines`` between two marks of its own."""
    before, _, rest = text.partition(start)
    return before + start + "\n" + "\n".join(lines) + "\n" + end + rest.partition(end)[2]


def with_table(text: str, figures: dict[str, Any]) -> str:
    """``text`` with its table of ``figures``."""
    lines = ["| what | figure | again: `python -m tests.figures ...` |", "|---|---|---|"]
    lines += [f"| {what} | {figure} | `{name}` |" for what, figure, name in rows(figures)]
    return between(text, START, END, lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.figures", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASURES)} (default: all), or table: write it again"
    )
    parser.add_argument("--soak-seconds", type=float, default=3600.0)
    parser.add_argument("--fuzz-seconds", type=int, default=60)
    arguments = parser.parse_args()
    if unknown := sorted({*arguments.names} - {*MEASURES, "table"}):
        parser.error(f"{', '.join(unknown)}: choose from {', '.join([*MEASURES, 'table'])}")
    for name in arguments.names or MEASURES:
        if name == "table":
            continue
        figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
        figures[name] = MEASURES[name](arguments)
        FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
        print(name, json.dumps(figures[name]), flush=True)
    README.write_text(with_table(README.read_text(), json.loads(FIGURES.read_text())))


if __name__ == "__main__":
    main()
