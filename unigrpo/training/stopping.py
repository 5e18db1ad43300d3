"""Ctrl-C and SIGTERM end a run in order: its last good state is saved once, and a sentence says how to go on.

Alone, a process stops at once: a rollout or a backward pass is given up, and the state before the step is the good one. Among
several, all finish the step and agree before the next, because one that left earlier would leave the others waiting.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from transformers import TrainerCallback

from ..config.arguments import UniGRPOConfig
from ..errors import Interrupted
from ..terminal import say, say_at_once
from .checkpoints.run_folder import checkpoint_folder


SIGNALS = (signal.SIGINT, signal.SIGTERM)

SAME = 1.0
"""Seconds in which a launcher passes on the signal that the terminal has sent to its processes already."""


class StopNow(KeyboardInterrupt):
    """Raised where the work of a step may be given up."""


class Signals:
    """Handles the signals of ``SIGNALS`` inside a ``with``; the second one does what it would have done without.

    Attributes:
        received: the first signal.
        may_raise: whether it raises ``StopNow`` where it comes; else somebody will look for it.
    """

    def __init__(self, launched: bool) -> None:
        self.received: int | None = None
        self.may_raise = False
        self._launched, self._since, self._before = launched, 0.0, {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                # Who ignores a signal (nohup) goes on doing so; a handler that is not Python's cannot be put back.
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _handle(self, number: int, frame: Any) -> None:
        if self.received is not None:
            if self._launched and time.monotonic() - self._since < SAME:
                return
            self.__exit__()
            signal.raise_signal(number)
            return
        self.received, self._since = number, time.monotonic()
        say_at_once(f"unigrpo: {signal.Signals(number).name}: the last state will be saved; once more stops at once")
        if self.may_raise:
            raise StopNow

    @contextmanager
    def giving_up(self, may: bool) -> Iterator[None]:
        """Inside, a signal raises where it comes, if it ``may``."""
        before, self.may_raise = self.may_raise, may
        try:
            if may and self.received is not None:
                raise StopNow
            yield
        finally:
            self.may_raise = before


class StopPoints(TrainerCallback):
    """Where a run may stop: before a step, and alone inside one until its gradient is applied."""

    def __init__(self, run: StoppableRun) -> None:
        self.run = run

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        self.run._started_at = state.global_step

    def on_step_begin(self, args, state, control, **kwargs: Any) -> None:
        self.run._stop_if_asked()
        self.run._inside = True
        self.run._signals.may_raise = self.run._stops_alone

    def on_pre_optimizer_step(self, args, state, control, **kwargs: Any) -> None:
        """From here until the next step the weights are between two states, or a checkpoint is written."""
        self.run._signals.may_raise = False

    def on_step_end(self, args, state, control, **kwargs: Any) -> None:
        self.run._inside = False


class StoppableRun:
    """A mixin between the checkpoints of ``WindowCheckpoints`` and ``transformers.Trainer``.

    Attributes:
        go_on: how a run is resumed, in the words of who started it.
    """

    args: UniGRPOConfig
    go_on = "trainer.train(resume_from_checkpoint=True)"
    _signals: Signals

    @property
    def _stops_alone(self) -> bool:
        """DeepSpeed applies a gradient inside the backward pass."""
        return self.accelerator.num_processes == 1 and not self.is_deepspeed_enabled

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers.

        Raises:
            Interrupted: Ctrl-C, after the state was saved.
            SystemExit: with status 143, the same after SIGTERM.
        """
        self.remove_callback(StopPoints)
        self.add_callback(StopPoints(self))
        self._inside, self._started_at = False, None
        with Signals(self.accelerator.num_processes > 1) as self._signals:
            try:
                with self._signals.giving_up(self._stops_alone):
                    result = super().train(*args, **kwargs)
                self._stop_if_asked()
                return result
            except StopNow:
                self._save_and_stop()

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the state is a whole step's, so held-out answers are given up."""
        with self._signals.giving_up(self._stops_alone):
            return super()._evaluate(*args, **kwargs)

    def _stop_if_asked(self) -> None:
        """Raises ``StopNow`` on every process if any has received a signal."""
        received = self._signals.received or 0
        if self.accelerator.num_processes > 1:
            own = torch.tensor([received], device=self.accelerator.device)
            received = int(self.accelerator.gather(own).max())
        if received:
            self._signals.received = received
            raise StopNow

    def _save_and_stop(self) -> NoReturn:
        self._signals.may_raise = False
        step, number = self.state.global_step, signal.Signals(self._signals.received)
        if self._progress is not None:
            self._progress.close()
        folder = checkpoint_folder(self.args.output_dir, step)
        if self._started_at is not None and step > self._started_at:
            self._save_last_state()
            cure = f"to go on: {self.go_on}"
            if self.args.save_only_model:
                cure = "save_only_model=True keeps weights alone, to start another run from"
            what = f"after step {step}, saved in {folder}; {cure}"
        else:
            what = f"before step {step + 1} was done, the first of this start: there is nothing new to save; start it again"
        what = f"stopped by {number.name} {what}"
        if self.is_world_process_zero():
            say(f"unigrpo: {what}", error=True)
        if number == signal.SIGTERM:
            raise SystemExit(128 + number) from None
        raise Interrupted(what) from None

    def _save_last_state(self) -> None:
        """A checkpoint of the last whole step, unless it has been written already."""
        every = self.args.gradient_accumulation_steps
        self._micro_step = self._micro_step // every * every
        if self._saved_step != self.state.global_step:
            self._step_failed = self._inside
            self._save_checkpoint(self.model_wrapped, trial=None)
