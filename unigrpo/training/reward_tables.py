"""The rewards of a run in its log: a table a task, a line a reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from transformers import TrainerCallback

from ..terminal import console
from .metrics import LATENCY


COLUMNS = {"mean": "mean", "group_std": "std in a group", "frac_ties": "ties", "frac_none": "none"}
"""Of the metrics of a reward those that are shown, and their headings."""

SHARES = ("frac_ties", "frac_none")


def reward_tables(logs: Mapping[str, float], names: Sequence[str], step: int) -> list[Table]:
    """What a log says of the rewards ``names``, a table for each task that it tells apart; none of a log without rewards.

    Ties are the groups of answers whose scores are all equal: they teach nothing. A call is as long on average since the last log.
    """
    beginnings = [f"rewards/{name}/frac_none/" for name in names]
    tasks = sorted({key.removeprefix(own) for key in logs for own in beginnings if key.startswith(own)})
    if not any(own.removesuffix("/") in logs for own in beginnings):
        return []
    return [_table(logs, names, f" of task {task}", f"/{task}", step) for task in tasks] or [
        _table(logs, names, "", "", step)
    ]


def _table(logs: Mapping[str, float], names: Sequence[str], title: str, suffix: str, step: int) -> Table:
    table = Table(title=f"Rewards{title} at step {step}")
    table.add_column("reward", overflow="fold")
    for heading in (*COLUMNS.values(), "a call"):
        table.add_column(heading, justify="right")
    for name in names:
        cells = [_cell(logs.get(f"rewards/{name}/{own}{suffix}"), own in SHARES) for own in COLUMNS]
        seconds = logs.get(f"{LATENCY}{name}")
        table.add_row(name, *cells, "-" if seconds is None else f"{seconds:.3g} s")
    return table


def _cell(value: float | None, share: bool) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if share else f"{value:.4g}"


class RewardTables(TrainerCallback):
    """Shows the tables of every training log on standard output.

    Args:
        names: of the run's rewards.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            for table in reward_tables(logs or {}, self.names, state.global_step):
                console().print(table)
