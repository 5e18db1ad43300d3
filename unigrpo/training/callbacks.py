"""What a person watches while a run goes on: the progress bar or its notebook's table, the metrics file."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import PrinterCallback
from transformers.utils.import_utils import is_in_notebook

from ..config.arguments import UniGRPOConfig
from ..rollout.rewards import RewardSet
from ..terminal import say, visible
from .checkpoints.files import append_line, named, write_text
from .checkpoints.run_record import read_record
from .reward_tables import RewardTables
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


class AskedSteps(TrainerCallback):
    """A resumed run logs, saves and measures as often as it is asked to. Trainer goes by what the checkpoint says."""

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        """The checkpoint's state has just been read."""
        state.compute_steps(args, state.max_steps)


class LastLog(TrainerCallback):
    """What was collected since the last log is logged when training ends, however short the run was."""

    def on_step_end(self, args, state, control, **kwargs: Any) -> None:
        """Before the last checkpoint, which is then one of a run without a rest."""
        if control.should_training_stop and args.logging_strategy != "no":
            control.should_log = True

    on_epoch_end = on_step_end


def add_callbacks(trainer: Any) -> UniGRPOProgress | Any | None:
    """The callbacks of both trainers: the last log, and a bar, a notebook's table, or lines where there is no terminal.

    Returns the bar or the table.
    """
    trainer.add_callback(AskedSteps())
    trainer.add_callback(LastLog())
    if trainer.args.disable_tqdm:
        return None
    trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)
    trainer.remove_callback(PrinterCallback)
    if is_in_notebook():
        from .notebook import NotebookTable

        shown: Any = NotebookTable()
    elif sys.stderr.isatty():
        shown = UniGRPOProgress()
    else:
        trainer.add_callback(LogLines())
        return None
    trainer.add_callback(shown)
    return shown


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


def reward_callbacks(args: UniGRPOConfig, rewards: RewardSet) -> list[TrainerCallback]:
    """What watches the rewards of a run."""
    return [ReadGolds(rewards), *([RewardTables(rewards.names)] if args.log_rewards else [])]


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
