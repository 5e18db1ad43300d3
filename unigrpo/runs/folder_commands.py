"""What the subcommands do that look at folders of runs, or go on with one. Heavy modules are imported where they are needed."""

from __future__ import annotations

import argparse

from ..terminal import say
from .commands import quiet_bars


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
