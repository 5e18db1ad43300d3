"""``unigrpo watch FOLDER ...``: runs side by side in a terminal, as their files grow. It reads alone."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table

from ..terminal import PlainConsole, console, middle_out
from .report.headline import accuracy, duration
from .report.markup import text_of
from .report.read import METRICS, RunFolder, completions_of, is_number, parsed, read_folder


BARS = "▁▂▃▄▅▆▇█"
SHOWN, RECENT, WIDTH = 16, 40, 100
"""Bars of a sparkline, logs that a rate is taken from, and columns where there is no terminal."""

EVERY = 2.0
"""Seconds between two looks."""


@dataclass(slots=True)
class Tail:
    """The mappings of a growing file of JSON lines; each look reads what is new, a file that shrank from its beginning.

    The last line is taken when it is whole.
    """

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    place: int = 0
    file: int = 0

    def look(self) -> list[dict[str, Any]]:
        """All lines so far."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                # A resumed run writes the file anew, without the lines that it will write again.
                if found.st_size < self.place or found.st_ino != self.file:
                    self.lines, self.place, self.file = [], 0, found.st_ino
                file.seek(self.place)
                whole = file.read().rpartition(b"\n")[0]
        except OSError:
            return self.lines
        if whole:
            self.place += len(whole) + 1
            lines = whole.decode(errors="replace").splitlines()
            self.lines += [own for line in lines if (own := parsed(line)) is not None]
        return self.lines


@dataclass(slots=True)
class Watched:
    """A folder that is or will be a run's."""

    path: Path
    tail: Tail
    newest: tuple[str, dict[str, Any] | None] = ("", None)

    @classmethod
    def of(cls, folder: str) -> Watched:
        return cls(Path(folder), Tail(Path(folder) / METRICS))

    def look(self) -> RunFolder | None:
        """What is there now; None while no run has begun."""
        try:
            return read_folder(self.path, self.tail.look())
        except ValueError:
            return None

    def completion(self) -> dict[str, Any] | None:
        """The last answer that ``log_completions`` left; files are read once."""
        newest = max((own.name for own in (self.path / "completions").glob("completions_*.parquet")), default="")
        if newest and newest != self.newest[0]:
            rows = completions_of(self.path, 1)
            self.newest = (newest, rows[-1]) if rows else self.newest
        return self.newest[1]


def watch(
    folders: Sequence[str],
    *,
    once: bool = False,
    out: PlainConsole | None = None,
    pause: Callable[[], Any] = lambda: time.sleep(EVERY),
) -> None:
    """Shows the runs until all are finished; without a terminal, or with ``once``, one table.

    Args:
        pause: what is waited for between two looks.
    """
    out = console() if out is None else out
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = max(out.width, WIDTH)
    runs = [Watched.of(folder) for folder in folders]
    if once or not out.is_terminal:
        out.print(view(runs)[0])
        return
    with Live(console=out, auto_refresh=False) as live:
        while True:
            shown, over = view(runs)
            live.update(shown, refresh=True)
            if over:
                return
            pause()


def view(runs: Sequence[Watched]) -> tuple[Group, bool]:
    """A table of all runs with the last answer of each below it, and whether all are finished."""
    table = Table(expand=True, show_edge=False, pad_edge=False)
    for name, share in (("run", 5), ("step", 5), ("reward", 4), ("KL", 2), ("loss", 2), ("held out", 4)):
        table.add_column(name, ratio=share, overflow="fold")
    answers, over = [], True
    for run in runs:
        found = run.look()
        over = over and found is not None and found.finished and not found.running
        table.add_row(*cells(run.path, found))
        answer = run.completion()
        if answer is not None:
            said = middle_out(text_of(answer.get("completion")), 160).replace("\n", " ")
            asked = middle_out(text_of(answer.get("prompt")), 120).replace("\n", " ")
            answers.append(f"{run.path}, step {answer['step']}: {asked} → {said}")
    return Group(table, *answers), over


def cells(path: Path, run: RunFolder | None) -> list[str]:
    """The cells of a run; lines of a cell stand below each other."""
    if run is None:
        what = "waiting: no run has begun there" if path.is_dir() else "waiting: the folder is not there yet"
        return [f"{path}\n{what}", "", "", "", "", ""]
    rewards = [value for _, value in run.points("reward")]
    reward = f"{rewards[-1]:.4g}\n{sparkline(rewards)}" if rewards else ""
    return [f"{path}\n{status(run)}", progress(run), reward, last(run, "kl"), last(run, "loss"), held_out(run)]


def status(run: RunFolder) -> str:
    """What the run is doing, and where it does nothing, since when."""
    if run.finished:
        return "finished"
    since = None if run.written is None else (datetime.now(UTC) - run.written).total_seconds()
    ago = "nothing written yet" if since is None else f"last written {duration(max(since, 0))} ago"
    if run.running is None:
        return f"on another machine, {ago}"
    return ("running" if run.metrics else "starting") + f", {ago}" if run.running else f"stopped, {ago}"


def progress(run: RunFolder) -> str:
    """``12/330``, and below it the rate and, while it runs, the time left."""
    rate = seconds_a_step(run.metrics)
    at = f"{run.step}/{run.total}" if run.total else str(run.step)
    if rate is None:
        return at
    left = "" if run.finished or not run.total else f", {duration(rate * (run.total - run.step))} left"
    return f"{at}\n{rate:.3g} s/step{left}"


def seconds_a_step(metrics: Sequence[dict[str, Any]]) -> float | None:
    """Seconds that the stages of a step took, over the last logs; None where there are no times."""
    logs = [own for own in metrics if is_number(own.get("step")) and "time/update" in own]
    before = logs[-RECENT - 1]["step"] if len(logs) > RECENT else 0
    recent = logs[-RECENT:]
    spent = sum(
        value for own in recent for name, value in own.items() if name.startswith("time/") and is_number(value)
    )
    steps = recent[-1]["step"] - before if recent else 0
    return spent / steps if steps > 0 else None


def last(run: RunFolder, name: str) -> str:
    """The last value of a metric."""
    points = run.points(name)
    return f"{points[-1][1]:.3g}" if points else ""


def held_out(run: RunFolder) -> str:
    """Accuracy before and after, or the last held-out reward or loss on the way."""
    shown = [f"{100 * own['mean']:.1f} %" for label in ("before", "after") if (own := accuracy(run, label))]
    lines = [" → ".join(shown)] if shown else []
    for name, said in (("eval_reward", "reward"), ("eval_loss", "loss")):
        points = run.points(name)
        if points:
            lines.append(f"{said} {points[-1][1]:.4g} at step {points[-1][0]}")
    return "\n".join(lines)


def sparkline(values: Sequence[float]) -> str:
    """The values in ``SHOWN`` bars, each the mean of neighbours, from the least to the greatest."""
    count = min(SHOWN, len(values))
    cuts = [round(place * len(values) / count) for place in range(count + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in itertools.pairwise(cuts)]
    low, spread = min(means), max(means) - min(means)
    return "".join(BARS[round((value - low) / spread * (len(BARS) - 1)) if spread else 0] for value in means)
