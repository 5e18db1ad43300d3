"""What the subcommands do that look at folders of runs, or go on with one. Heavy modules are imported where they are needed."""

from __future__ import annotations

import argparse

from ..terminal import say
from .commands import quiet_bars


REPORT = """examples:
  unigrpo train quickstart max_steps=20 eval_datasets.0.limit=64
  unigrpo report runs/quickstart

A run that goes on, or was killed, will do. The page is one file and asks no
network.
"""


WATCH = """examples:
  unigrpo watch runs/quickstart     while `unigrpo train quickstart` goes on

It reads metrics.jsonl and what lies beside it, and writes nothing. It ends when
all runs are finished; Ctrl-C ends it at once.
"""


REPRODUCE = """examples:
  unigrpo reproduce                  what there is, with budgets
  unigrpo reproduce toy              some minutes on two cores
  unigrpo reproduce math-mmada --budget 1gpu-day --plan

Stopped at any moment and started again, it goes on. It measures held-out rows,
trains, measures again, and leaves card.json, card.html and card.png.
"""


def report_arguments(report: argparse.ArgumentParser) -> None:
    """The words of ``unigrpo report``."""
    report.epilog = REPORT
    report.add_argument("folder", metavar="FOLDER", help="what `unigrpo train`, `sft` or `evaluate` left")
    report.add_argument("--output", metavar="FILE", help="the page (default: report.html in the folder)")
    report.add_argument("--overwrite", action="store_true", help="replace the page if it exists")
    report.add_argument(
        "--denoise",
        type=int,
        default=0,
        metavar="N",
        help="also show so many answers of each task step by step",
    )


def watch_arguments(watch: argparse.ArgumentParser) -> None:
    """The words of ``unigrpo watch``."""
    watch.epilog = WATCH
    watch.add_argument("folders", nargs="+", metavar="FOLDER", help="of a run; it need not be there yet")
    watch.add_argument("--once", action="store_true", help="print one table and end")


def reproduce_arguments(reproduce: argparse.ArgumentParser) -> None:
    """The words of ``unigrpo reproduce``."""
    reproduce.epilog = REPRODUCE
    reproduce.add_argument(
        "name", nargs="?", metavar="NAME", help="toy, math-mmada or image-mmada (default: the list)"
    )
    reproduce.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="other settings; the card says so")
    reproduce.add_argument(
        "--budget", metavar="B", help="how much is spent, such as 1gpu-day (default: the first listed)"
    )
    reproduce.add_argument("--output-dir", metavar="DIR", help="default: runs/reproduce-NAME-BUDGET")
    reproduce.add_argument("--plan", action="store_true", help="only print stages, hours, memory and what is expected")
    reproduce.add_argument("--check", metavar="CARD", help="is a card.json whole, and what differs from here?")


def run_report(arguments: argparse.Namespace) -> int:
    """``unigrpo report FOLDER [--output FILE.html] [--denoise N] [--overwrite]``."""
    from .report.command import report

    if arguments.denoise:
        quiet_bars()
    report(arguments.folder, arguments.output, overwrite=arguments.overwrite, denoise=arguments.denoise)
    return 0


def run_watch(arguments: argparse.Namespace) -> int:
    """``unigrpo watch FOLDER ... [--once]``."""
    from .watch import watch

    watch(arguments.folders, once=arguments.once)
    return 0


def run_reproduce(arguments: argparse.Namespace) -> int:
    """``unigrpo reproduce NAME [--budget B] [--plan] [--check CARD] [key=value ...]``: 1 outside the expectation or for a changed card."""
    from .reproduce.table import chosen, listed

    if arguments.name is None and arguments.check is None:
        lines, whole = listed(), True
    elif arguments.check is not None:
        from .reproduce.card import check_card

        lines, whole = check_card(arguments.check)
    else:
        chosen(arguments.name, arguments.budget)
        from .reproduce.command import plan_of, reproduce

        quiet_bars()
        if not arguments.plan:
            card = reproduce(arguments.name, arguments.budget, arguments.overrides, arguments.output_dir)
            return 1 if card and card["verdict"].startswith(("outside", "not measured")) else 0
        lines, whole = plan_of(arguments.name, arguments.budget, arguments.overrides), True
    for line in lines:
        say(line)
    return 0 if whole else 1
