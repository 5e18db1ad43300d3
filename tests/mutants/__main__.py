"""``python -m tests.mutants``: plants one bug of the mathematics after the other and says which the tests find.

Works on a copy of the tree, so that nothing here is touched, with one process at a time. Each mutant of
``tests/mutants/core.toml`` names the test files that should find it; they run up to the first failure. One that hangs is
ended by time and counts as found. Prints a table, writes ``--out``, and exits with 1 where a mutant survives that is not
known to be harmless.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..support import ROOT
from .mutant import Mutant, read
from .run import apart, baseline, check_all, copied, play


def chosen(mutants: list[Mutant], names: list[str]) -> list[Mutant]:
    """Those of ``names``, all for none; ends the program for a name that no mutant has."""
    known = {own.name for own in mutants}
    if unknown := sorted(set(names) - known):
        sys.exit(f"no mutant is called {', '.join(unknown)}: see --list")
    return [own for own in mutants if own.name in names or not names]


def verdict(mutant: Mutant, kind: str) -> str:
    """What the table says of an outcome."""
    if kind == "passed":
        return "harmless" if mutant.harmless else "SURVIVED"
    return "killed" if kind == "failed" else "killed by time"


def played(mutants: list[Mutant], room: bool) -> list[dict[str, Any]]:
    """One row of the results a mutant."""

    def tell(what: str) -> None:
        print(what, flush=True)

    rows: list[dict[str, Any]] = []
    if apart(check_all, mutants, ROOT):
        sys.exit("the list of mutants does not fit the library")
    with tempfile.TemporaryDirectory(prefix="unigrpo-mutants-") as folder:
        tree = copied(ROOT, Path(folder) / "copy")
        seconds: dict[str, float] = {}
        for number, own in enumerate(mutants, start=1):
            for tests in own.tests:
                if tests not in seconds:
                    seconds[tests] = baseline(tree, tests)
                    tell(f"without a mutant {tests} passes in {seconds[tests]:.0f} s")
            outcome = play(tree, own, seconds, room)
            said = verdict(own, outcome.kind)
            rows.append({"name": own.name, "file": own.file, "bug": own.bug, "outcome": said, "by": outcome.by})
            rows[-1]["seconds"] = round(outcome.seconds, 1)
            tell(f"[{number}/{len(mutants)}] {said:<14} {outcome.seconds:5.0f} s  {own.name}  {outcome.by}")
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of ``tests/README.md``."""
    found = [own["outcome"] for own in rows]
    return {
        "mutants": len(rows),
        "killed": found.count("killed") + found.count("killed by time"),
        "by_time": found.count("killed by time"),
        "harmless": [own["name"] for own in rows if own["outcome"] == "harmless"],
        "survived": [own["name"] for own in rows if own["outcome"] == "SURVIVED"],
        "minutes": round(sum(own["seconds"] for own in rows) / 60, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line a mutant."""
    width = max(len(own["name"]) for own in rows)
    return "\n".join(
        f"{own['name']:<{width}}  {own['outcome']:<14}  {own['seconds']:6.1f} s  {own['by']}" for own in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these mutants alone")
    parser.add_argument("--list", action="store_true", help="name the mutants and run nothing")
    parser.add_argument("--room", action="store_true", help="try survivors against all tests of their room")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants.json", help="default: runs/mutants.json")
    arguments = parser.parse_args()
    mutants = chosen(read(), arguments.only)
    if arguments.list:
        print("\n".join(f"{own.name}: {own.bug} ({own.file})" for own in mutants))
        return
    # As conftest.py does, which comes after what is read once.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rows = played(mutants, arguments.room)
    told = summary(rows)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**told, "results": rows}, indent=2) + "\n")
    print(f"\n{table(rows)}\n\nmutants: {told['killed']} of {told['mutants']} killed; results in {arguments.out}")
    sys.exit(1 if told["survived"] else 0)


if __name__ == "__main__":
    main()
