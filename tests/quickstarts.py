"""``python -m tests.quickstarts [NAME ...]``: the tables of ``recipes/QUICKSTARTS.md``, measured again.

A NAME is a table (``quickstart_image``) or a row (``quickstart/lora``); without names all rows are measured, which takes about an
hour on two cores. ``--list`` says what there is of each. A row is trained by the installed command in a folder of its own. What
came out is kept in ``tests/quickstarts.json`` with the commit; the tables are written from that file.

A row that was measured on the present code is not measured again. One that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unigrpo.training.checkpoints.files import write_json

from .quickstart_tables import ROWS, TABLES, Row, Run, commit, with_tables
from .support import ROOT


RESULTS = ROOT / "tests" / "quickstarts.json"

PAGES = (ROOT / "README.md", ROOT / "recipes" / "QUICKSTARTS.md")

CODE = ("unigrpo", "rewards", "recipes")
"""What a row's numbers depend on; of these folders texts and pictures do not count."""

OPTIONS = (
    "disable_tqdm=true",
    "resume_from_checkpoint=true",
    "save_strategy=steps",
    "save_steps=100",
    "save_total_limit=1",
)


# ---- which code ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """The code that a row is measured on: the commit, and a digest of git's own hashes of the files that count."""

    commit: str
    digest: str


def code_of(root: Path = ROOT) -> Code:
    """The code in ``root``.

    Raises:
        SystemExit: some of it is in no commit, so that nobody could say later what was measured.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout

    counts = [f":(exclude,glob)**/*.{own}" for own in ("md", "png")]
    if changed := git("status", "--porcelain", "--", *CODE, *counts):
        raise SystemExit(f"{root} has changes that no commit holds, commit them first:\n{changed.rstrip()}")
    files = [
        line for line in git("ls-tree", "-r", "HEAD", "--", *CODE).splitlines() if not line.endswith((".md", ".png"))
    ]
    return Code(
        commit=git("rev-parse", "HEAD").strip(), digest=hashlib.sha256("\n".join(files).encode()).hexdigest()[:16]
    )


def unigrpo(*arguments: str) -> str:
    """What the installed command prints; an error ends the measurement, and so does a command that is of another folder."""
    command = Path(sys.executable).parent / "unigrpo"
    where = "from importlib.util import find_spec; print(find_spec('unigrpo').origin)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", where], capture_output=True, text=True, check=True
    ).stdout.strip()
    if Path(found).resolve().parent != ROOT / "unigrpo":
        raise SystemExit(f"the installed command is that of {found}: `pip install -e .` in {ROOT} first")
    done = subprocess.run([command, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"unigrpo {' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


# ---- one row ----


def measured(own: Row, folder: Path, command: Callable[..., str] = unigrpo) -> dict[str, Any]:
    """What the runs of a row came to: by recipe, and by task where there are several, accuracy before and after.

    In a folder that a killed measurement left, runs that are finished are read, and the one that is not goes on. The seconds are
    those of training, None where a run was interrupted.
    """
    found: dict[str, Any] = {}
    seconds, starts, before = 0.0, folder / "starts.txt", ""
    folder.mkdir(parents=True, exist_ok=True)
    for run in own.runs:
        out = folder / run.recipe
        overrides = [override.replace("{before}", before) for override in run.overrides]
        if not (out / "summary.json").exists():
            with starts.open("a") as told:
                told.write(f"{run.recipe}\n")
            command(run.command, run.recipe, *overrides, f"output_dir={out}", *OPTIONS)
        summary = json.loads((out / "summary.json").read_text())
        found[run.recipe] = {
            **{when: summary[f"held_out_accuracy_{when}"] for when in ("before", "after")},
            "gain_points": summary["gain_points"],
            "rewards": {when: summary.get(f"held_out_rewards_{when}") for when in ("before", "after")},
        }
        found |= summary.get("tasks", {})
        seconds, before = seconds + summary["train_seconds"], str(out)
    if own.sampled:
        found["temperature 1"] = sampled(own.runs[-1], Path(before), command)
    if own.thoughts:
        found["thoughts"] = under_thoughts(own.runs[-1], Path(before), command)
    interrupted = len(starts.read_text().splitlines()) > len(own.runs)
    return {"seconds": None if interrupted else round(seconds, 1), "measured": found}


ACCURACY = re.compile(r"held-out accuracy ([\d.]+) % \[([\d.]+), ([\d.]+)\] on (\d+)")


def sampled(run: Run, out: Path, command: Callable[..., str]) -> dict[str, Any]:
    """Accuracy at temperature 1 before and after ``run``, which left its weights in ``out``."""
    found: dict[str, Any] = {}
    for when, model in (("before", []), ("after", ["--model", str(out)])):
        told = command("evaluate", run.recipe, *model, *run.overrides, "eval_temperature=1.0", f"output_dir={out}")
        (numbers,) = ACCURACY.findall(told)
        mean, low, high = (round(float(number) / 100, 3) for number in numbers[:3])
        found[when] = {"mean": mean, "low": low, "high": high, "count": int(numbers[3])}
    return {**found, "gain_points": round(100 * (found["after"]["mean"] - found["before"]["mean"]), 1)}


def under_thoughts(run: Run, out: Path, command: Callable[..., str]) -> dict[str, Any]:
    """Pictures under other thoughts before and after ``run``, as ``thoughts.json`` has them."""
    found = {}
    for when, model in (("before", []), ("after", ["--model", str(out)])):
        folder = out.parent / f"thoughts_{when}"
        if not (folder / "thoughts.json").exists():
            command("evaluate", run.recipe, "--thoughts", *model, *run.overrides, f"output_dir={folder}")
        found[when] = json.loads((folder / "thoughts.json").read_text())["thoughts"]
    return found


# ---- all rows ----


def measure(
    rows: Iterable[Row],
    out: Path,
    results: Path,
    code: Callable[[], Code] = code_of,
    command: Callable[..., str] = unigrpo,
) -> None:
    """Measures the rows that ``results`` has no numbers of for this code, and keeps each one there when it is done.

    Raises:
        SystemExit: the code changed meanwhile.
    """
    for own in rows:
        now = code()
        if _stored(results).get(own.name, {}).get("code") == now.digest:
            print(f"{own.name} was measured on this code already", flush=True)
            continue
        found = measured(own, out / now.digest / own.name.replace("/", "-"), command)
        if code() != now:
            raise SystemExit(f"the code changed while {own.name} ran: measure in a checkout that stays as it is")
        when = datetime.now(UTC).isoformat(timespec="seconds")
        stored = {**_stored(results), own.name: {"commit": now.commit, "code": now.digest, "when": when, **found}}
        write_json(results, dict(sorted(stored.items(), key=lambda item: _place(item[0]))))
        print(own.name, json.dumps(found["measured"]), flush=True)


def _stored(results: Path) -> dict[str, Any]:
    return json.loads(results.read_text()) if results.exists() else {}


def _place(name: str) -> int:
    names = [own.name for own in ROWS]
    return names.index(name) if name in names else len(names)


def listed(rows: Iterable[Row], results: dict[str, Any], code: Code) -> list[str]:
    """A line for each row: measured on this code, on which other, or not at all."""
    lines = []
    for own in rows:
        found = results.get(own.name)
        state = "not measured" if found is None else f"stale, of {commit(found)}"
        lines.append(f"{own.name:26} {'measured' if found and found['code'] == code.digest else state}")
    return lines


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.quickstarts", description=__doc__)
    names = [own.name for own in ROWS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLES)}, or {', '.join(names)}")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs" / "quickstarts", help="where the runs have their folders"
    )
    parser.add_argument("--list", action="store_true", help="measure nothing, say which rows are measured or stale")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables again")
    asked = parser.parse_args(words)
    if unknown := sorted(set(asked.names) - {*TABLES, *names}):
        parser.error(f"{', '.join(unknown)}: choose from {', '.join([*TABLES, *names])}")
    rows = [own for own in ROWS if not asked.names or {own.name, own.table} & set(asked.names)]
    if asked.list:
        print("\n".join(listed(rows, _stored(RESULTS), code_of())))
        return
    if not asked.tables:
        measure(rows, asked.out.resolve(), RESULTS)
    for page in PAGES:
        page.write_text(with_tables(page.read_text(), _stored(RESULTS)))


if __name__ == "__main__":
    main()
