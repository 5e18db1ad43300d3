"""The command: ``python -m tests.benchmarks [--quick] [--only NAME,...] [--output FILE] [--plot FILE] [--readme]``.

It starts itself anew with one thread and an allocator that keeps freed memory, so that rounds are comparable.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .bench import FULL, QUICK, random_bench
from .cases import CASES
from .measure import THREADS, WARM_ALLOCATOR, environment, touch_heap
from .report import markdown, plot_growth, write_readme


HEAP_GB = 6.0
"""What the largest case holds at once."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; ``only`` becomes a list of names."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one block, fewer steps: minutes instead of half an hour")
    parser.add_argument("--only", default=",".join(CASES), help=f"comma-separated cases of {', '.join(CASES)}")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    parser.add_argument("--plot", type=Path, help="draw time against completions and scored tokens, as a picture")
    parser.add_argument("--readme", action="store_true", help="put the tables into the README beside this file")
    parser.add_argument("--from", dest="source", type=saved, help="measure nothing, show this JSON of an earlier run")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    unknown = sorted(set(options.only) - CASES.keys())
    if unknown:
        parser.error(f"--only {unknown} is unknown: choose from {', '.join(CASES)}")
    report = options.source
    names = options.only if report is None else [result["case"] for result in report["results"]]
    if options.plot is not None and "growth" not in names:
        cure = "add it to --only" if report is None else "--from lacks it"
        parser.error(f"--plot draws the case 'growth': {cure}")
    return options


def saved(path: str) -> dict:
    """The report in the JSON file ``path``."""
    try:
        report = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be read: {error}") from None
    if "results" not in report:
        raise argparse.ArgumentTypeError(f"{path} holds no results of this command's cases")
    return report


def run_cases(names: list[str], quick: bool) -> dict:
    """The report of the named cases on the mid-size model."""
    bench = random_bench("mid", QUICK if quick else FULL)
    touch_heap(HEAP_GB)
    results = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(names))
        for number, name in enumerate(names, start=1):
            progress.update(task, description=f"{number}/{len(names)} {name}")
            results += [{"case": name, **result.as_dict()} for result in CASES[name](bench)]
            progress.advance(task)
    return {
        "environment": {**environment(bench.model, bench.size), "quick": quick},
        "sizes": asdict(bench.sizes),
        "results": results,
    }


def restart_warm(arguments: list[str]) -> None:
    """Replace this process by one with ``WARM_ALLOCATOR`` and one thread, unless it already has both."""
    settings = {**WARM_ALLOCATOR, **THREADS}
    if any(os.environ.get(key) != value for key, value in settings.items()):
        command = [sys.executable, "-m", "tests.benchmarks", *arguments]
        os.execve(sys.executable, command, {**os.environ, **settings})


def main(arguments: list[str]) -> int:
    """Exit status 1 where a check failed or a floor was missed."""
    options = parse(arguments)
    if options.source is not None:
        report = options.source
    else:
        restart_warm(arguments)
        torch.set_num_threads(1)
        report = run_cases(options.only, options.quick)
    print(markdown(report))
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1))
    if options.plot is not None:
        plot_growth(report, options.plot)
    if options.readme:
        write_readme(report)
    return 0 if all(result["ok"] for result in report["results"]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
