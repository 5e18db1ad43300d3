"""A minute of the quickstart: the shipped arithmetic policy learns on the device from an integer comparison."""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.runs.accuracy import integer_match
from unigrpo.runs.recipe import load_recipe
from unigrpo.toy.arithmetic import problems

from ..support import RECIPES
from .job import Job
from .steps import Deadline


RECIPE = RECIPES / "quickstart.yaml"
"""Its settings; its formula reward needs packages that may be missing."""

SMALL = {"per_device_train_batch_size": 32, "max_steps": 9, "warmup_steps": 0}
"""What a walk without a GPU changes."""

ROWS = 2048
"""Problems to learn from: more than the windows of the recipe's steps ask for."""

ENDS = 3
"""Windows at either end of the run whose mean reward is reported, in a run of at least twice as many."""


def right(completions: list[str], solution: list[str], **_: Any) -> list[float]:
    """1 for the integer of the solution, else 0."""
    return [float(integer_match(text, gold)) for text, gold in zip(completions, solution, strict=True)]


class Watch(TrainerCallback):
    """Ends the run in time, and notes when each step was done."""

    def __init__(self, deadline: Deadline) -> None:
        self.deadline, self.times = deadline, [time.perf_counter()]

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        self.times = [time.perf_counter()]

    def on_step_end(self, args, state, control, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())
        if self.deadline.left <= 0:
            control.should_training_stop = True

    @property
    def each(self) -> list[float]:
        """Seconds of every step."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def quickstart(job: Job) -> None:
    """Trains until the recipe's steps or the time are over."""
    job.drop()
    changes = SMALL if job.device == "cpu" else {}
    watch = Watch(job.deadline)
    with tempfile.TemporaryDirectory() as folder:
        silent = {"output_dir": folder, "report_to": "none", "disable_tqdm": True, "use_cpu": job.device == "cpu"}
        args = UniGRPOConfig(**{**load_recipe(RECIPE).config, **changes, **silent})
        trainer = UniGRPOTrainer("builtin:arithmetic", [right], args, problems("train", ROWS), callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    rewards = [log["reward"] for log in trainer.state.log_history if log.get("reward") is not None]
    ends = max(min(ENDS, len(rewards) // 2), 1)
    job.found |= {
        "steps": trainer.state.global_step,
        "of_steps": args.max_steps,
        "answers_a_window": args.per_device_train_batch_size,
        "windows": len(rewards),
        "reward_first": statistics.fmean(rewards[:ends]),
        "reward_last": statistics.fmean(rewards[-ends:]),
        "windows_at_each_end": ends,
        "rewards": rewards,
        "seconds_a_step": sum(watch.each) / len(watch.each),
        "slowest_step": max(watch.each),
    }
    job.tell(
        f"{job.found['steps']} steps, {job.found['seconds_a_step']:.3f} s each, reward "
        f"{job.found['reward_first']:.2f} -> {job.found['reward_last']:.2f}"
    )
