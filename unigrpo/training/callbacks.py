"""What a person watches while a run goes on: the progress bar, the metrics file, the completions table."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils.import_utils import is_in_notebook

from ..rollout.rewards import RewardSet
from ..terminal import console, middle_out, say, visible
from .checkpoints.files import append_line, named, write_text
from .checkpoints.run_record import read_record
from .contact_sheet import grouped_sheet
from .scores import refuse_unreadable


BAR = {
    "reward": "reward",
    "kl": "kl",
    "clip": "clip_ratio/region_mean",
    "tok/s": "tokens_per_second",
    "rollout_s": "time/rollout",
    "reward_s": "time/reward",
    "update_s": "time/update",
}
"""What the bar shows, and the metric it comes from."""


SHEET_ROWS, SHEET_COLUMNS = 8, 8
"""Prompts and pictures a prompt on a contact sheet of completions."""


WIDTHS = {"prompt": 12, "completion": 20}
"""Characters that these columns of a completions table keep, however narrow the terminal is."""


def shown_metrics(logs: dict[str, float]) -> dict[str, str]:
    """The values of ``BAR`` that a log has, by label."""
    return {label: f"{logs[name]:.3g}" for label, name in BAR.items() if name in logs}


def held_out_metrics(logs: dict[str, float]) -> str:
    """The held-out rewards of a log in words; empty where it has none."""
    return ", ".join(f"{visible(name)} {value:.4g}" for name, value in logs.items() if name.startswith("eval_reward"))


class UniGRPOProgress(ProgressCallback):
    """The training bar with reward, KL, clip fraction, tokens/s and the seconds spent in each stage since the last log.

    A value stays until the next one: rewards come once a window, losses at every step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shown: dict[str, str] = {}

    def on_log(self, args, state, control, logs=None, **kwargs: Any) -> None:
        if self.training_bar is None or not logs:
            return
        self.shown |= shown_metrics(logs)
        self.training_bar.set_postfix(self.shown)
        held_out = held_out_metrics(logs)
        if held_out:
            self.training_bar.write(f"step {state.global_step}: {held_out}")

    def on_rollout(self, done: int, total: int) -> None:
        """Progress inside a rollout, which at 8B takes most of a step."""
        if self.training_bar is not None:
            self.training_bar.set_description_str("" if done == total else f"rollout {done}/{total}")

    def close(self) -> None:
        """Leaves the line of the bar, so that something can be said below it."""
        if self.training_bar is not None:
            self.training_bar.close()


class LogLines(TrainerCallback):
    """One line a log on standard error, in place of the bar where nobody watches: a bar in a file is a line a redraw."""

    def on_log(self, args, state, control, logs=None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        found = [f"{label} {value}" for label, value in shown_metrics(logs).items()]
        found = [f"loss {logs['loss']:.3g}", *found] if "loss" in logs else [held_out_metrics(logs)]
        if any(found):
            say(f"step {state.global_step}/{state.max_steps}: {', '.join(found)}", error=True)


class LastLog(TrainerCallback):
    """What was collected since the last log is logged when training ends, however short the run was."""

    def on_step_end(self, args, state, control, **kwargs: Any) -> None:
        """Before the last checkpoint, which is then one of a run without a rest."""
        if control.should_training_stop and args.logging_strategy != "no":
            control.should_log = True

    on_epoch_end = on_step_end


def add_callbacks(trainer: Any) -> UniGRPOProgress | None:
    """The callbacks of both trainers: the last log, and a bar, or lines where there is no terminal.

    Returns the bar.
    """
    trainer.add_callback(LastLog())
    if trainer.args.disable_tqdm:
        return None
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if is_in_notebook():
        from transformers.utils.notebook import NotebookProgressCallback

        # Its table has a column for the loss alone, which says little here; the bar has reward and KL.
        trainer.remove_callback(NotebookProgressCallback)
    if not (sys.stderr.isatty() or is_in_notebook()):
        trainer.add_callback(LogLines())
        return None
    bar = UniGRPOProgress()
    trainer.add_callback(bar)
    return bar


def reference_update(twin: Any, with_reference: bool, accelerator: Any) -> TrainerCallback:
    """Mixes the policy into its reference ``twin`` now and then.

    Raises:
        ValueError: there is no reference, or it is the policy without its adapters.
    """
    if not with_reference:
        raise ValueError(
            "sync_ref_model=True does nothing: no task takes a KL to the initial model (beta=0, or kl_reference='old'). "
            "Set it to False, or kl_reference='initial'"
        )
    if twin is None:
        raise ValueError(
            "sync_ref_model=True does nothing with adapters: the reference is the model without them. Set it to False, or "
            "train the whole model"
        )
    from trl import SyncRefModelCallback

    return SyncRefModelCallback(ref_model=twin, accelerator=accelerator)


class ReadGolds(TrainerCallback):
    """A run ends with an error where a reward could read no solution from its first window to its last."""

    def __init__(self, rewards: RewardSet) -> None:
        self.rewards = rewards

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        refuse_unreadable(self.rewards, 1)


class JsonLines(TrainerCallback):
    """Every log as one line of JSON, with the step and the run's id, in ``path``, on disk before the step's checkpoint is.

    A resumed run first drops the lines after its step, one that a crash cut short, and the final totals of a run that
    was finished, so that the file is the uninterrupted run's. (The totals are of the last process alone.)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run: dict[str, str] = {}

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        """Learns the run's id, and drops the lines that a resumed run writes again."""
        if not state.is_world_process_zero:
            return
        record = read_record(args.output_dir)
        self.run = {} if record is None else {"run_id": record.run_id}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(errors="replace").splitlines() if state.global_step and self.path.exists() else []
        kept = [line for line in lines if _step(line) <= state.global_step]
        with named(self.path):
            write_text(self.path, "".join(line + "\n" for line in kept))

    def on_log(self, args, state, control, logs=None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            record = {"step": state.global_step, **self.run, **{name: _finite(value) for name, value in logs.items()}}
            with named(self.path):
                append_line(self.path, json.dumps(record))


def _step(line: str) -> float:
    """The step of a line; a line that a crash cut short and one of final totals are past every step."""
    try:
        record = json.loads(line)
        return math.inf if "train_runtime" in record else record["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_completions(table: dict[str, list], step: int, limit: int | None) -> None:
    """A rich table of sampled answers on standard output; texts fold, and of long ones the end is shown."""
    rows = len(table["prompt"]) if limit is None else min(limit, len(table["prompt"]))
    if len(set(table.get("task", ()))) == 1:
        table = {name: column for name, column in table.items() if name != "task"}
    view = Table(title=f"Completions at step {step}", show_lines=True)
    for name in table:
        view.add_column(name, overflow="fold", min_width=WIDTHS.get(name, 4), max_width=None if name in WIDTHS else 6)
    for index in range(rows):
        view.add_row(*(_cell(column[index]) for column in table.values()))
    console().print(view)


def save_completions(table: dict[str, list], folder: Path, step: int) -> None:
    """``completions_STEP.parquet``, and ``images_STEP.png`` with the first pictures of the table and their advantages."""
    from datasets import Dataset

    folder.mkdir(parents=True, exist_ok=True)
    columns = {name: [_stored(value) for value in values] for name, values in table.items()}
    Dataset.from_dict(columns).to_parquet(folder / f"completions_{step:05d}.parquet")
    thoughts = table.get("thought", [None] * len(table["prompt"]))
    drawn = [
        (str(prompt), completion, thought or "")
        for prompt, completion, thought in zip(table["prompt"], table["completion"], thoughts, strict=True)
        if isinstance(completion, Image.Image)
    ]
    if drawn:
        grouped_sheet(drawn, rows=SHEET_ROWS, columns=SHEET_COLUMNS, title=f"step {step}").save(
            folder / f"images_{step:05d}.png"
        )


def _stored(value: Any) -> str | int | float | None:
    if isinstance(value, Image.Image):
        return _cell(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Image.Image):
        return f"picture of {value.width} x {value.height} pixels"
    return middle_out(str(value))
