"""``python -m tests.fuzz TARGET --seconds N``: coverage-guided with atheris, from ``seeds``.

Prints ``fuzz TARGET: N cases in S s, 0 crashes, slowest X s``. A crash leaves its input as ``crash`` in the folder that is
printed, and the status is not 0; a case of over ten seconds is a crash.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path


SLOWEST = 10.0
"""Seconds that a case may take."""


def main() -> None:
    """Fuzzes one target."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", choices=("recipe", "answers", "image", "checkpoint"))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    arguments = parser.parse_args()
    import atheris

    with atheris.instrument_imports(include=["unigrpo", "rewards", "yaml", "PIL"]):
        from . import seeds, targets

    targets.quiet()
    check, counted = targets.TARGETS[arguments.target], {"cases": 0, "slowest": 0.0, "started": 0.0}
    work = Path(tempfile.mkdtemp(prefix="unigrpo-corpus-"))
    for number, seed in enumerate(seeds.seeds(arguments.target)):
        (work / f"seed-{number:02d}").write_bytes(seed)

    def one(data: bytes) -> None:
        began = time.perf_counter()
        if counted["started"] and began - counted["started"] > arguments.seconds:
            report(arguments.target, counted)
        counted["started"] = counted["started"] or began
        counted["cases"] += 1
        try:
            check(data)
            took = time.perf_counter() - began
            assert took <= SLOWEST, f"a case of {took:.1f} s"
        except BaseException:
            (work / "crash").write_bytes(data)
            raise
        counted["slowest"] = max(counted["slowest"], took)

    def change(data: bytes, longest: int, seed: int) -> bytes:
        if seed % 2:
            return atheris.Mutate(data, longest)
        return seeds.mutated(data, seed)[:longest]

    # A little more than the time asked for: the search itself ends in ``report``.
    options = [
        f"-max_total_time={arguments.seconds + 30}", "-timeout=60", "-rss_limit_mb=6000", "-max_len=400000", "-verbosity=0",
        f"-artifact_prefix={work}/", "-print_final_stats=0",
    ]  # fmt: skip
    options += [f"-seed={arguments.seed}"] if arguments.seed else []
    print(f"fuzz {arguments.target}: crashing input would lie in {work}", flush=True)
    atheris.Setup([sys.argv[0], *options, str(work)], one, custom_mutator=change)
    atheris.Fuzz()


def report(target: str, counted: dict[str, float]) -> None:
    """The summary line, and the end of the process: the fuzzer has no way to return."""
    took = time.perf_counter() - counted["started"]
    cases, slowest = int(counted["cases"]), counted["slowest"]
    print(f"fuzz {target}: {cases} cases in {took:.0f} s, 0 crashes, slowest {slowest:.2f} s", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
